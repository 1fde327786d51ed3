"""How many runs of a sweep may have jobs at once, also after a resume."""

from pathlib import Path

import pytest

from mgpt4_hpc.launch.manage.concurrency_limit import ConcurrencyLimit
from mgpt4_hpc.launch.runs.sweep_dir import SweepDir, create_sweep
from tests.cli.fakes import FakeSlurm, Mgpt4, squeue_row
from tests.cli.synthetic import make_run, submitted
from tests.support.resuming import Submissions


@pytest.mark.slow
def test_a_sweep_keeps_how_many_may_be_at_work(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path, submissions: Submissions
) -> None:
    runs = [make_run(tmp_path / "runs", f"s-{name}") for name in "abcde"]
    for number, run in enumerate(runs):
        submitted(run, f"30_{number}")
    sweep = SweepDir.of("s", tmp_path / "runs")
    create_sweep(sweep, runs, [{}] * 5, "slurm", max_parallel=2)
    slurm.squeue = squeue_row("30_1", "RUNNING")

    ended = mgpt4("resume", "s")
    assert ended.code == 0 and "s: at most 2 at once" in ended.err
    # One place is free; who comes next waits for what runs, and then for those before.
    waits = [dependency for _, _, dependency in submissions.asked]
    assert waits == [None, "afterany:30_1", "afterany:18", "afterany:19"]

    submissions.asked.clear()
    assert mgpt4("resume", "s", "--max-parallel", "3").code == 0
    assert [dependency for *_, dependency in submissions.asked][:2] == [None, None]
    assert sweep.max_parallel() == 3, "and so at the next time"

    submissions.asked.clear()
    alone = mgpt4("resume", "s-a", "--json")
    assert alone.code == 0 and alone.json["run"] == "s-a" and "s: at most 3 at once" in alone.err
    slurm.squeue = "".join(squeue_row(f"30_{number}", "RUNNING") for number in (1, 2, 3))
    assert mgpt4("resume", "s-a").code == 0
    assert [dependency for *_, dependency in submissions.asked] == [None, "afterany:30_1"]
    refused = mgpt4("resume", "s-a", "--max-parallel", "3")
    assert refused.code == 2 and "--max-parallel 3 is for sweeps" in refused.err


@pytest.mark.parametrize(
    ("most", "live", "rows"),
    [
        (2, [], [[], [], ["n0"], ["n1"], ["n2"]]),
        (2, ["a"], [[], ["a"], ["n0"], ["n1"]]),
        (2, ["a", "b", "c"], [["a", "b"], ["a", "b", "c"], ["n0"], ["n1"]]),
        (1, ["a", "b"], [["a", "b"], ["n0"], ["n1"]]),
    ],
)
def test_whose_turn_it_is(most: int, live: list[str], rows: list[list[str]]) -> None:
    limit = ConcurrencyLimit(most, live)
    for number, expected in enumerate(rows):
        assert list(limit.next) == expected
        limit.take(f"n{number}")

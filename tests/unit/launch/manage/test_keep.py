"""Jobs that can never start are cancelled and submitted again."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.launch.runs.sweep_dir import SweepDir, create_sweep
from mgpt4_hpc.run_dir import write_json
from tests.cli.fakes import FakeSlurm, Mgpt4
from tests.cli.synthetic import make_run
from tests.support.keeping import begun
from tests.support.resuming import Submissions


@pytest.mark.parametrize(("jobs", "again"), [(3, True), (4, False)])
def test_jobs_that_never_begin_come_to_an_end(
    mgpt4: Mgpt4,
    slurm: FakeSlurm,
    tmp_path: Path,
    submissions: Submissions,
    jobs: int,
    again: bool,
) -> None:
    run = begun(tmp_path / "runs", "one", "11")
    line = [str(11 + n) for n in range(jobs + 1)]
    write_json(
        run.slurm / "job.json", {"job_id": line[-1], "submitted": 1.5e9, "succeeds": line[:-1]}
    )
    slurm.sacct = f"{line[-1]}|FAILED|1:0|1|2|n1|None|||\n"
    ended = mgpt4("keep")
    assert bool(submissions.asked) is again
    assert ("its last 4 jobs ended before a rank started" in ended.err) is not again


def test_a_member_on_a_cluster_that_cannot_be_asked_leaves_the_others(
    mgpt4: Mgpt4, slurm: FakeSlurm, tmp_path: Path, submissions: Submissions
) -> None:
    runs = tmp_path / "runs"
    lost, away = begun(runs, "s-a", "30_0"), make_run(runs, "s-b")
    write_json(away.slurm / "job.json", {"job_id": "9", "submitted": 1.5e9, "cluster": "beta"})
    create_sweep(SweepDir.of("s", runs), [lost, away], [{}] * 2, "slurm", max_parallel=1)
    slurm.down, slurm.sacct = "beta", "30_0|NODE_FAIL|0:0|1|2|n1|None|||\n"
    ended = mgpt4("keep", "--json")
    assert (ended.code, [row["run"] for row in ended.json]) == (0, ["s-a"]), ended.err

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.runs.run_state import RunState
from mgpt4_hpc.launch.runs.status import RunOverview, look_at
from mgpt4_hpc.launch.runs.wait import wait_for_runs
from mgpt4_hpc.run_dir import RunDir
from tests.cli.synthetic import make_run


@pytest.fixture
def row(tmp_path: Path) -> RunOverview:
    return look_at([make_run(tmp_path)]).rows[0]


def wait(row: RunOverview, *states: tuple[str, str]) -> list[str]:
    """What is said while the run goes through these states."""
    story: Iterator[tuple[str, str]] = iter(states)
    said: list[str] = []

    def look(runs: Sequence[RunDir]) -> list[RunOverview]:
        state, text = next(story)
        return [dataclasses.replace(row, state=RunState(state), text=text)]

    wait_for_runs([RunDir(Path(row.path))], say=said.append, poll_s=0, look=look)
    return said


def test_until_finished(row: RunOverview) -> None:
    said = wait(
        row,
        ("pending", "pending (Priority)"),
        ("running", "running"),
        ("pending", "preempted, requeued, eligible in 40 s"),
        ("pending", "preempted, requeued, eligible in 35 s"),
        ("unknown", "unknown: Slurm does not answer"),
        ("lost", "lost: for a moment"),
        ("running", "running"),
        ("finished", "finished"),
    )
    assert said == [
        "one: pending (Priority)",
        "one: running",
        "one: preempted, requeued, eligible in 40 s",
        "one: unknown: Slurm does not answer",
        "one: lost: for a moment",
        "one: running",
        "one: finished",
    ]


@pytest.mark.parametrize("state", ["failed", "stopped", "cancelled"])
def test_it_names_who_did_not_finish(row: RunOverview, state: str) -> None:
    with pytest.raises(MgptError, match="1 of 1 runs did not finish: one: why it ended") as caught:
        wait(row, ("running", "running"), (state, "why it ended"))
    assert caught.value.exit_code == 1

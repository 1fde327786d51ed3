"""For tests of `resume`: a run whose job is over, and a stand-in for the submission."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mgpt4_hpc.config.load import Resolved
from mgpt4_hpc.launch.submit.submit_run import SubmittedRun
from mgpt4_hpc.run_dir import RunDir
from tests.cli.synthetic import Clock, attempt, make_run, submitted


class Submissions:
    """Stands in for `submit_run`; notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[Resolved, str, str | None]] = []
        self.succeeds: list[tuple[str, ...]] = []
        self.error: Exception | None = None

    def __call__(
        self,
        run: RunDir,
        resolved: Resolved,
        executor: str,
        *,
        dependency: str | None = None,
        succeeds: Sequence[str] = (),
    ) -> SubmittedRun:
        for marker in (run.resubmit_needed, run.failed):
            marker.unlink(missing_ok=True)
        if self.error is not None:
            raise self.error
        self.asked.append((resolved, executor, dependency))
        self.succeeds.append(tuple(succeeds))
        return SubmittedRun(run, executor, str(17 + len(self.asked)))


def timed_out_run(runs: Path) -> RunDir:
    """The run ``one``: job 17 reached its time limit after step 20 of 100."""
    made = make_run(runs)
    submitted(made)
    attempt(made, 1, first=1, last=20, cause="time limit", clock=Clock(1e9))
    made.resubmit_needed.write_text("Slurm did not say why\n")
    return made


def contents(run: RunDir) -> dict[str, Any]:
    """Every file of the run by its name."""
    return {
        str(path.relative_to(run.path)): path.read_bytes()
        for path in run.path.rglob("*")
        if path.is_file()
    }

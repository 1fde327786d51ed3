"""When a job would start: Slurm's own estimate, for which nothing is submitted."""

from __future__ import annotations

import os
import re
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import ConfigError, SlurmRejected, SlurmUnreachable
from mgpt4_hpc.launch.slurm import commands
from mgpt4_hpc.launch.slurm.sbatch import translate
from mgpt4_hpc.launch.submit.plan import Plan, render_plan

_ANSWER = re.compile(
    r"to start at (?P<start>\S+)"
    r"(?: (?:a job )?using (?P<processors>\d+) processors)?"
    r"(?: on nodes? (?P<nodes>\S+))?(?: in partition (?P<partition>\S+))?"
)


@dataclass(frozen=True)
class StartEstimate:
    """What ``sbatch --test-only`` said of one job.

    Attributes:
        job: name of the run, or of the sweep whose first task is meant.
        start: local time, as 2026-03-01T10:00:00.
        in_s: seconds from now.
        processors, nodes, partition: that it would get; None where Slurm does not say.
        after: run that must finish before, which the estimate leaves out.
    """

    job: str
    start: str
    in_s: float
    processors: int | None
    nodes: str | None
    partition: str | None
    after: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain values, under the attributes' names."""
        return asdict(self)


def estimate_starts(plan: Plan) -> list[StartEstimate]:
    """Ask Slurm when each job of a plan would start.

    Raises:
        ConfigError: the plan is for this machine.
        SlurmRejected, SlurmUnreachable: Slurm would not take a job, or does not answer.
    """
    if plan.executor != "slurm":
        raise ConfigError(
            "--test-only asks Slurm, and the executor is local",
            fix="leave it out, or use --executor slurm on a submit node",
        )
    follows = {item.run.name: item.follows for item in plan.runs}
    found = []
    # A dependency on a job that is not there yet would be refused.
    for name, script in render_plan(plan, with_dependencies=False).items():
        before = follows.get(name) or (plan.runs[0].follows if plan.sweep is not None else None)
        found.append(_parse(name, _ask(script), before.name if before is not None else None))
    return found


def _ask(script: str) -> str:
    with tempfile.TemporaryDirectory(prefix="mgpt4-") as folder:
        path = Path(folder) / "job.sbatch"
        path.write_text(script, encoding="utf-8")
        try:
            return commands.run_slurm(
                ["sbatch", "--test-only", str(path)],
                environ=commands.clean_environment(os.environ),
                with_stderr=True,
            )
        except SlurmRejected as error:
            raise translate(error.what, script) from error


def _parse(job: str, told: str, after: str | None) -> StartEstimate:
    match = _ANSWER.search(told)
    if match is None:
        raise SlurmUnreachable(f"sbatch --test-only cannot be understood: {told.strip()!r}")
    start = time.mktime(time.strptime(match["start"], "%Y-%m-%dT%H:%M:%S"))
    return StartEstimate(
        job=job,
        start=match["start"],
        in_s=max(0.0, start - time.time()),
        processors=int(match["processors"]) if match["processors"] else None,
        nodes=match["nodes"],
        partition=match["partition"],
        after=after,
    )

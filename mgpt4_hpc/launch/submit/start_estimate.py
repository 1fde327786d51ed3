"""When a job would start: Slurm's own estimate, for which nothing is submitted."""

from __future__ import annotations

import time
from dataclasses import dataclass

from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.launch.slurm.sbatch import estimate_start
from mgpt4_hpc.launch.submit.execute import render_plan
from mgpt4_hpc.launch.submit.plan import Plan


@dataclass(frozen=True)
class StartEstimate:
    """What ``sbatch --test-only`` said of one job.

    Attributes:
        job: name of the run, or of the sweep, for its first task.
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
    estimates = []
    # A dependency on a job that is not there yet would be refused.
    for name, script in render_plan(plan, with_dependencies=False).items():
        before = follows.get(name) or (plan.runs[0].follows if plan.sweep is not None else None)
        estimates.append(_estimate(name, script, before.name if before is not None else None))
    return estimates


def _estimate(job: str, script: str, after: str | None) -> StartEstimate:
    estimated = estimate_start(script)
    start, processors = str(estimated["start"]), estimated["processors"]
    begin = time.mktime(time.strptime(start, "%Y-%m-%dT%H:%M:%S"))
    return StartEstimate(
        job=job,
        start=start,
        in_s=max(0.0, begin - time.time()),
        processors=int(processors) if processors else None,
        nodes=estimated["nodes"],
        partition=estimated["partition"],
        after=after,
    )

"""What earlier jobs found missing on their nodes; the doctor itself sees the login node alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress

from mgpt4_hpc.launch.site_check.finding import Finding, Findings
from mgpt4_hpc.launch.slurm.commands import NO_SCONTROL
from mgpt4_hpc.run_dir import RunDir

_WARNING = re.compile(re.escape(NO_SCONTROL.encode()) + rb"([\w.-]+)")


def node_findings(runs: Iterable[RunDir]) -> list[Finding]:
    """A warning that names the nodes where a batch script of these runs found no ``scontrol``."""
    nodes = set()
    for run in runs:
        for log in run.slurm.glob("*_0_log.out"):
            # It may have been removed, or another user's.
            with suppress(OSError), log.open("rb") as lines:
                nodes |= {match[1].decode() for line in lines if (match := _WARNING.match(line))}
    findings = Findings("nodes")
    if nodes:
        findings.warn(
            f"jobs found no scontrol on {', '.join(sorted(nodes))}: a run there cannot requeue "
            "itself after a time limit, a crash or a preemption with PreemptMode=CANCEL",
            "add its folder to PATH in launch.setup, have `mgpt4 keep` bring the runs back, or "
            "exclude the nodes: --sbatch exclude=NODES",
        )
    return findings

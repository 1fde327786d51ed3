"""Keeping a job away from nodes that failed their check.

Slurm refuses to change ExcNodeList of a running job (measured on 22.05), and takes it as soon as
the job is requeued. Done before the job starts again, it is right there.
"""

from __future__ import annotations

from collections.abc import Sequence

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.slurm import commands


def exclude_nodes(job_id: str, nodes: Sequence[str]) -> str:
    """Add nodes to those that a waiting job may not get; what the user excluded stays.

    Returns:
        what was done, or why not, as a sentence for the log: a job without its exclusion is still
        better than none, so nothing is raised.
    """
    try:
        excluded = commands.job_record(job_id).get("ExcNodeList", "")
        before = [] if excluded in ("", "(null)") else commands.hostnames(excluded)
        new = [node for node in nodes if node not in before]
        if new:
            listed = ",".join([*before, *new])
            commands.run_slurm(["scontrol", "update", f"JobId={job_id}", f"ExcNodeList={listed}"])
    except MgptError as error:
        return f"{', '.join(nodes)} could not be excluded: {error.what}"
    return f"excluded {', '.join(nodes)}"

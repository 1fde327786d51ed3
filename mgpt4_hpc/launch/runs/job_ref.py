"""Which job works on a run: ``RUN/slurm/job.json``, and whether a job in the queue is that one.

A job's id is used again: by another cluster, and by a controller that was set up again. A folder is
copied together with its ``job.json``. Neither the id nor the file alone says that a job is a run's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpt4_hpc.launch.slurm.queue import QueuedJob
from mgpt4_hpc.launch.slurm.scheduler import scheduler
from mgpt4_hpc.run_dir import RunDir, read_json, write_json


@dataclass(frozen=True)
class JobRef:
    """The job that works on a run, or did last; what is not known is empty.

    Attributes:
        executor: "slurm", "local", or "torchrun".
        job_id: Slurm's, or a process id.
        since: unix time of its submission or first start.
        hostname: where it runs, if it is a process here or elsewhere.
        cluster: name of the Slurm cluster that it was submitted to.
        name, user_id, work_dir: of the job, as Slurm shows them.
        succeeds: jobs that it was submitted to go on for, oldest first.
    """

    executor: str
    job_id: str
    since: float = 0.0
    hostname: str = ""
    cluster: str = ""
    name: str = ""
    user_id: str = ""
    work_dir: str = ""
    succeeds: tuple[str, ...] = ()

    def is_job(self, job: QueuedJob) -> bool:
        """Whether a job that Slurm shows under this id is the one; what is unknown may be."""
        pairs = (
            (self.name, job.name),
            (self.user_id, job.user_id),
            (self.work_dir, job.work_dir),
        )
        return all(not ours or not theirs or ours == theirs for ours, theirs in pairs)


def note_job(
    run: RunDir,
    executor: str,
    job_id: str,
    name: str = "",
    work_dir: Path | None = None,
    *,
    succeeds: Sequence[str] = (),
    **further: Any,
) -> None:
    """Write down which job works on a run.

    Args:
        run: the run.
        executor: "slurm" or "local".
        job_id: as the executor names it.
        name: of the job in Slurm.
        work_dir: the job's working directory.
        succeeds: jobs that it goes on for, oldest first.
        further: kept beside it.

    Raises:
        OSError: the folder refused.
    """
    write_json(
        run.slurm / "job.json",
        {
            "executor": executor,
            "job_id": job_id,
            "submitted": time.time(),
            "host": os.uname().nodename,
            "run": run.run_id,
            # A copy of this folder takes this file along, and is another folder.
            "folder": str(run.path.resolve()),
            "inode": run.path.stat().st_ino,
            "cluster": scheduler().cluster_name() if executor == "slurm" else "",
            "name": name,
            "user_id": str(os.getuid()),
            "work_dir": str(work_dir) if work_dir is not None else "",
            "succeeds": list(succeeds),
            **further,
        },
    )


def read_note(run: RunDir) -> dict[str, Any]:
    """What ``job.json`` has; empty where it is missing or torn."""
    try:
        return read_json(run.slurm / "job.json")
    except (OSError, ValueError):
        return {}


def read_ref(noted: Mapping[str, Any], since: float, hostname: str) -> JobRef:
    """The job that a ``job.json`` names."""
    return JobRef(
        executor=str(noted.get("executor") or "slurm"),
        job_id=str(noted.get("job_id") or ""),
        since=since,
        hostname=hostname,
        cluster=str(noted.get("cluster") or ""),
        name=str(noted.get("name") or ""),
        user_id=str(noted.get("user_id") or ""),
        work_dir=str(noted.get("work_dir") or ""),
        succeeds=tuple(map(str, noted.get("succeeds") or ())),
    )


def copied_from(run: RunDir, noted: Mapping[str, Any]) -> str | None:
    """The folder that a ``job.json`` belongs to, if it is another than the run's.

    A folder that was moved keeps its inode, and its job follows it. One that was copied, or moved
    to another file system, is a run without a job.
    """
    folder = noted.get("folder")
    if not isinstance(folder, str) or not folder or folder == str(run.path.resolve()):
        return None
    try:
        moved = run.path.stat().st_ino == noted.get("inode")
    except OSError:
        moved = False
    return None if moved else folder

"""A job's successor, if the job may not be requeued: the same script, submitted from inside it.

It waits until this job has ended, in whatever way, so that no two jobs of the run are at work. What
waited for this job waits for the successor from then on. The run's budgets are those of both:
``job.json`` names the jobs that the new one succeeds.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.runs.job_ref import read_note
from mgpt4_hpc.launch.runs.submission_lock import submitting
from mgpt4_hpc.launch.slurm import commands
from mgpt4_hpc.launch.slurm.dependencies import (
    Dependency,
    JobName,
    on_successor,
    other_tasks,
    update_dependency,
    waiting_jobs,
)
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.launch.slurm.scheduler import scheduler
from mgpt4_hpc.run_dir import RunDir, write_json

_ASK_S = 10.0
"""Patience with each command: the job may be killed in half a minute."""
_FORGOTTEN_S = 60
"""Seconds until the successor of a job that Slurm forgot may start: its processes end before."""

_PICKLED = re.compile(r" -m submitit\.core\._submit .*$", re.MULTILINE)
"""How a submitted script starts a rank; what it unpickles is named after the script's own job."""
_OF_THE_JOB = frozenset(
    {"CUDA_VISIBLE_DEVICES", "GPU_DEVICE_ORDINAL", "ROCR_VISIBLE_DEVICES", "ZE_AFFINITY_MASK"}
)
"""Variables that Slurm sets for the devices of one job."""


def of_its_line(run: RunDir, start: JobStart) -> JobStart:
    """The start, with the jobs that its job succeeds."""
    job = read_note(run)
    if str(job.get("job_id")) != start.job_id:
        return start
    return replace(start, succeeds=tuple(map(str, job.get("succeeds") or ())))


def submit_successor(
    run: RunDir,
    start: JobStart,
    exclude: Sequence[str] = (),
    *,
    is_forgotten: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> str:
    """Submit the job that continues the run; its id. Done twice it finds the first one.

    Args:
        run: the run.
        start: this job's start.
        exclude: nodes where the successor must not run.
        is_forgotten: Slurm does not know this job any more, so that none can wait for it.
        environ: of the batch script.

    Raises:
        MgptError: there is none, and why.
    """
    name = JobName.of(start.job_id, environ)
    with submitting(run):
        waiting = waiting_jobs(timeout_s=_ASK_S)
        successor = _submitted_before(run, start, name, waiting)
        if successor is None:
            successor = _submit(run, start, exclude, is_forgotten, environ)
        waiting.pop(successor, None)
        _note(run, start, successor)
        for line in move_dependents(name, successor, waiting):
            print(line, flush=True)
    try:
        scheduler().forbid_requeue(start.job_id, timeout_s=_ASK_S)
    except MgptError:
        pass  # that it may not be requeued is why we are here
    return successor


def _submitted_before(
    run: RunDir, start: JobStart, name: JobName, waiting: Mapping[str, Dependency]
) -> str | None:
    """The successor that this job has submitted already, noted or not."""
    noted = read_note(run)
    if start.job_id in (noted.get("succeeds") or ()):
        return str(noted["job_id"])
    for job_id, dependency in waiting.items():
        is_ours = len(dependency.terms) == 1 and dependency.terms[0].kind == "afterany"
        if is_ours and name.is_meant(dependency.terms[0]):
            record = commands.job_record(job_id, timeout_s=_ASK_S)
            if record.get("WorkDir") == str(run.path):
                return job_id
    return None


def _submit(
    run: RunDir,
    start: JobStart,
    exclude: Sequence[str],
    is_forgotten: bool,
    environ: Mapping[str, str],
) -> str:
    # sbatch has no handle of this process: it needs the folder's name
    stored, script = run.slurm / "job.sbatch", run.place / "slurm" / "successor.sbatch"
    try:
        text = stored.read_text(encoding="utf-8")
        task = f" -m mgpt4_hpc.launch.task {shlex.quote(str(run.path))}"
        text = _PICKLED.sub(lambda _: task, text).replace("%A_%a", "%j")
        script.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MgptError(f"its script cannot be submitted again: {error}") from error
    wait = (
        f"--begin=now+{_FORGOTTEN_S}" if is_forgotten else f"--dependency=afterany:{start.job_id}"
    )
    options = [wait, *([f"--exclude={','.join(exclude)}"] if exclude else [])]
    return scheduler().submit(script, options, _environment(run, environ), timeout_s=_ASK_S)


def without_devices(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without the devices and the temporary folder of the one job."""
    job_id = environ.get("SLURM_JOB_ID", "")
    clean = {key: value for key, value in environ.items() if key not in _OF_THE_JOB}
    if job_id and re.search(rf"(?<!\d){job_id}(?!\d)", clean.get("TMPDIR", "")):
        del clean["TMPDIR"]  # made by the site for this job
    return clean


def _environment(run: RunDir, environ: Mapping[str, str]) -> dict[str, str]:
    """What the batch script was given, without what Slurm and the script itself have added."""
    clean = without_devices(environ)
    paths = clean.get("PYTHONPATH", "").split(os.pathsep)
    clean["PYTHONPATH"] = os.pathsep.join(path for path in paths if path != str(run.code))
    if not clean["PYTHONPATH"]:
        del clean["PYTHONPATH"]
    return clean


def _note(run: RunDir, start: JobStart, successor: str) -> None:
    """Let everybody follow the run to its new job."""
    job = {
        **read_note(run),  # the cluster, the user, the run's folder
        "executor": "slurm",
        "name": "",  # a task of an array is succeeded by a job of its own
        "work_dir": str(run.path),
        "job_id": successor,
        "submitted": time.time(),
        "host": os.uname().nodename,
        "succeeds": [*start.succeeds, start.job_id],
    }
    try:
        write_json(run.slurm / "job.json", job)
    except OSError as error:  # its own ledger will show it
        print(f"that job {successor} succeeds this one cannot be noted: {error}", flush=True)


def move_dependents(name: JobName, successor: str, waiting: Mapping[str, Dependency]) -> list[str]:
    """Let those that wait for this job wait for its successor; a sentence for each."""
    notes = []
    others: list[str] | None = None
    for job_id, dependency in waiting.items():
        try:
            if others is None and any(map(name.is_among, dependency.terms)):
                others = other_tasks(name, timeout_s=_ASK_S)
            moved = on_successor(dependency, name, successor, others or ())
            if moved != dependency:
                update_dependency(job_id, moved, timeout_s=_ASK_S)
                notes.append(f"job {job_id} now waits for {moved}")
        except MgptError as error:
            notes.append(f"job {job_id} waits for this job, not for {successor}: {error.what}")
    return notes

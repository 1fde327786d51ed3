"""Work in parts: a plain Slurm array; task I of N runs ``mgpt4 ... --part I/N``.

For work without a run directory (indexing, downloading, encoding). Each part must write its result
atomically and skip what is there already: then a requeued task, or the whole command given again,
costs only what is missing. Slurm requeues a task that lost its node. One that was preempted or
killed, or is at its time limit, asks for that itself: ``launch.job.part_end``.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from mgpt4_hpc.config.schema import LaunchConfig
from mgpt4_hpc.errors import ConfigError, MgptError, SlurmRejected, SlurmUnreachable
from mgpt4_hpc.formatting import first_line
from mgpt4_hpc.launch.runs.run_state import LAG_S
from mgpt4_hpc.launch.slurm.commands import clean_environment, log_pattern
from mgpt4_hpc.launch.slurm.queue import QueuedJob
from mgpt4_hpc.launch.slurm.sbatch import submit
from mgpt4_hpc.launch.slurm.sbatch_options import without_rivals
from mgpt4_hpc.launch.slurm.scheduler import scheduler
from mgpt4_hpc.output_files import lock
from mgpt4_hpc.run_dir import read_json, write_json
from mgpt4_hpc.stop_signals import STOP_SIGNALS
from mgpt4_hpc.text_files import text_of

T = TypeVar("T")

POLL_S = 5.0
_WARNED_FROM_MIN = 5
"""Tasks with a shorter limit get no warning before it: Slurm may send it a minute too early."""
_SHOWN = 5
SUBMITTED_FILE = "array.json"
"""In the folder of the parts once Slurm has the array."""
_LOCK = "array.lock"
END = "end"
"""Name of the task that puts the parts together, where a part has its number."""
_OWN_FILES = (
    *("*.log", "*.done", "*.ends", "*.job", "array.sbatch", "end.sbatch", SUBMITTED_FILE, _LOCK),
    *(".*.partial", ".*.tmp", ".nfs*"),
)
"""In the folder of the parts, beside their results: see ``ArrayJob``; half-written results; what
NFS keeps of a file that was removed while it was open."""
_LOST = frozenset({"FAILED", "TIMEOUT", "CANCELLED", "OUT_OF_MEMORY", "DEADLINE", "BOOT_FAIL"})
"""States that a task with ``--requeue`` does not come back from by itself."""
LOST_S = 20.0
"""Seconds for which they must stand: while a task is requeued, Slurm may show its last end."""

_PART = (
    """code=0 signal=
# a start that Slurm makes of what is done ends here; its folder may be gone
if [ ! -e {part}.done ] && {{ [ -d {folder} ] || [ "${{SLURM_RESTART_COUNT:-0}}" = 0 ]; }}; then
  # a signal may come before there is a task
  stop() {{ signal=$1; [ -z "$!" ] || kill -TERM $!; }}
"""
    + "".join(f"  trap 'stop SIG{name}' {name}\n" for name in STOP_SIGNALS)
    + """  {command} &
  [ -z "$signal" ] || kill -TERM $!
  wait $!; code=$?
fi
trap '' {signals}
[ $code -ne 0 ] || [ ! -d {folder} ] || : > {part}.done
{end} {part} --exit-code $code ${{signal:+--signal $signal}}
exit $code"""
)
"""Script of a task: its command beside a shell that outlives it."""


@dataclass(frozen=True)
class Wants:
    """What each task asks of Slurm.

    Attributes:
        partition, account: None is the site's default.
        time_min: limit in minutes.
        cpus, gpus: per task.
        mem_gib: per task; None is the site's default.
        at_once: tasks that may run at the same time; None is all.
        sbatch: further options of sbatch, without dashes.
    """

    partition: str | None = None
    account: str | None = None
    time_min: int = 240
    cpus: int = 1
    gpus: int = 0
    mem_gib: int | None = None
    at_once: int | None = None
    sbatch: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ArrayJob:
    """``mgpt4 ARGUMENTS --part I/PARTS`` for I from 1 to PARTS.

    Attributes:
        name: of the job.
        arguments: of ``mgpt4``; relative paths count from the present folder.
        parts: tasks.
        folder: for the script, the logs and a mark of each finished part; on shared storage.
        wants: see ``Wants``.
    """

    name: str
    arguments: Sequence[str]
    parts: int
    folder: Path
    wants: Wants = field(default_factory=Wants)

    def log(self, part: int) -> Path:
        """Output of one part; a requeued one goes on in the same file."""
        return self.folder / f"{part}.log"

    def mark(self, part: int | str) -> Path:
        """Appears when a part has ended well."""
        return self.folder / f"{part}.done"

    def ends(self, part: int | str) -> Path:
        """How earlier starts of a part ended, a line each."""
        return self.folder / f"{part}.ends"

    def successor(self, part: int | str) -> Path:
        """Id of the job that does a part whose own may not be requeued."""
        return self.folder / f"{part}.job"

    def task_id(self, array_id: str, part: int) -> str:
        """Slurm's id of a part's task, in the array or in a successor's."""
        with suppress(OSError):
            array_id = self.successor(part).read_text(encoding="utf-8")
        return f"{array_id}_{part}"


def slice_of(items: Sequence[T], part: int, parts: int) -> Sequence[T]:
    """Part ``part`` of 1 ... ``parts``: neighbours, in lengths that differ by at most one."""
    return items[(part - 1) * len(items) // parts : part * len(items) // parts]


def check_parts_folder(folder: Path, results: str) -> None:
    """Refuse a folder for parts that holds anything else: it is removed in the end.

    Args:
        folder: need not exist.
        results: what the names of the parts' results look like, as ``*.index``.

    Raises:
        ConfigError: naming what is there.
    """
    if not os.path.lexists(folder):
        return
    ours = (results, *_OWN_FILES)
    shards = sorted(folder.iterdir()) if folder.is_dir() else [folder]
    strange = [path for path in shards if not any(path.match(pattern) for pattern in ours)]
    if strange:
        listed = ", ".join(str(path) for path in strange[:_SHOWN])
        raise ConfigError(
            f"{folder} is to hold the parts of this work and nothing else, but there is {listed}",
            why="the folder is removed when the parts have been put together",
            fix="choose another output, or move that away",
        )


def array_script(job: ArrayJob) -> str:
    """The batch script."""
    wants = job.wants
    limit = f"%{wants.at_once}" if wants.at_once else ""
    options: dict[str, object] = {
        "array": f"1-{job.parts}{limit}",
        "cpus-per-task": wants.cpus,
        "time": wants.time_min,
        "output": f"{log_pattern(job.folder.absolute())}/%a.log",
    }
    if wants.time_min >= _WARNED_FROM_MIN:
        options["signal"] = f"B:USR2@{LaunchConfig().signal_before_s}"
    if wants.gpus:
        options["gpus-per-node"] = wants.gpus
    if wants.mem_gib is not None:
        options["mem"] = f"{wants.mem_gib}G"
    options_end = job.arguments.index("--") if "--" in job.arguments else len(job.arguments)
    names = shlex.join(job.arguments[options_end:])
    command = (
        f"{_mgpt4(job.arguments[:options_end])} "
        f'--part "$SLURM_ARRAY_TASK_ID/{job.parts}" {names}'.rstrip()
    )
    return _script(job.name, wants, options, _task(job, '"$SLURM_ARRAY_TASK_ID"', command))


def following_script(job: ArrayJob, arguments: Sequence[str], array_id: str) -> str:
    """A batch script of one task that runs ``mgpt4 ARGUMENTS`` once all parts have ended well."""
    options: dict[str, object] = {
        "cpus-per-task": job.wants.cpus,
        "time": job.wants.time_min,
        "output": log_pattern(job.folder.absolute().with_name(f"{job.folder.name}.log")),
        "dependency": f"afterok:{array_id}",
        # Otherwise it waits for ever behind a part that failed.
        "kill-on-invalid-dep": "yes",
    }
    return _script(f"{job.name}-end", job.wants, options, _task(job, END, _mgpt4(arguments)))


def _task(job: ArrayJob, part: str, command: str) -> str:
    """Shell lines that run one part's command; ``part`` is its name for the shell."""
    folder = shlex.quote(str(job.folder.absolute()))
    end = _python("mgpt4_hpc.launch.job.part_end")
    signals = " ".join(STOP_SIGNALS)
    return _PART.format(
        command=command, folder=folder, part=f"{folder}/{part}", end=end, signals=signals
    )


@dataclass(frozen=True)
class SubmittedArray:
    """An array that Slurm has.

    Attributes:
        job: as it was submitted.
        job_id: of the array.
        following_id: of the job behind it; None if there is none.
        joined: whether the same command submitted it before.
    """

    job: ArrayJob
    job_id: str
    following_id: str | None = None
    joined: bool = False


def submit_once(job: ArrayJob, following: Sequence[str] | None = None) -> SubmittedArray:
    """Submit an array, unless the one that the same command submitted before is under way.

    Args:
        job: the array.
        following: arguments of an ``mgpt4`` that runs once all parts have ended well.

    Raises:
        SlurmRejected, SlurmUnreachable: if it cannot be submitted, or the queue cannot be read.
        MgptError: if the folder cannot be written, or Slurm cannot write logs into it.
    """
    with _locked(job.folder):
        if (found := _under_way(job)) is None:
            found = SubmittedArray(job, submit_array(job))
            _note(found)  # what follows may be refused: the array is there all the same
        if following is not None and found.following_id is None:
            script = following_script(job, following, found.job_id)
            found = replace(found, following_id=_sbatch(job.folder / "end.sbatch", script))
            _note(found)
    return found


def _note(found: SubmittedArray) -> None:
    job = found.job
    facts = {"job_id": found.job_id, "parts": job.parts,
             "arguments": list(job.arguments), "following_id": found.following_id}  # fmt: skip
    with suppress(OSError):  # then the same command given again submits another array
        write_json(job.folder / SUBMITTED_FILE, facts)


def submit_array(job: ArrayJob) -> str:
    """Submit the array; its job id. Marks of an earlier one are taken away. Raises as above."""
    script = array_script(job)
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        for part in (*range(1, job.parts + 1), END):
            job.mark(part).unlink(missing_ok=True)
            job.ends(part).unlink(missing_ok=True)
            job.successor(part).unlink(missing_ok=True)
    except OSError as error:
        raise _cannot_write(job.folder, error) from error
    return _sbatch(job.folder / "array.sbatch", script)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The same command may be given twice at one moment."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("ab")
    except OSError as error:
        raise _cannot_write(folder, error) from error
    with file:
        lock(file, wait=True)
        yield


def _cannot_write(folder: Path, error: OSError) -> MgptError:
    return MgptError(
        f"the folder {folder} cannot be written: {error.strerror}",
        fix="choose an output on storage that all nodes share",
    )


def _under_way(job: ArrayJob) -> SubmittedArray | None:
    """The array that the same command submitted before, unless that is over."""
    try:
        facts = read_json(job.folder / SUBMITTED_FILE)
        job_id, parts, arguments = str(facts["job_id"]), int(facts["parts"]), facts["arguments"]
        following_id = facts["following_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if arguments != list(job.arguments):
        return None
    # A part that has just ended is COMPLETING for a while, with its mark beside it.
    undone = [part for part in range(1, parts + 1) if not job.mark(part).exists()]
    jobs = scheduler().queued([job.task_id(job_id, part) for part in undone])
    # Another cluster, or one that has lost its state, may give the number to another job.
    under_way = any(found.is_active and found.name == job.name for found in jobs.values())
    return (
        SubmittedArray(replace(job, parts=parts), job_id, following_id, True) if under_way else None
    )


def wait_for_array(
    job: ArrayJob,
    job_id: str,
    *,
    on_progress: Callable[[int, int], None] | None = None,
    poll_s: float = POLL_S,
    lag_s: float = LAG_S,
    lost_s: float = LOST_S,
    ask: Callable[[Sequence[str]], Mapping[str, QueuedJob]] | None = None,
) -> None:
    """Return when all parts have ended well.

    Args:
        job: that was submitted.
        job_id: of the array.
        on_progress: called with (parts done, parts in all) at each look.
        poll_s: seconds between two looks.
        lag_s: how long a part may be neither in the queue nor marked as done: files and queue lag
            behind each other.
        lost_s: how long all missing parts must have failed.
        ask: replaced by tests; the parts' jobs as Slurm has them, by id.

    Raises:
        MgptError: once no part can go on and some did not end well; names them and their logs.
    """
    ask = ask or _ask
    done: set[int] = set()
    still_since: float | None = None
    while True:
        done |= {part for part in range(1, job.parts + 1) if job.mark(part).exists()}
        missing = [part for part in range(1, job.parts + 1) if part not in done]
        answered, states = True, dict[int, QueuedJob | None]()
        if missing:
            try:
                ids = {part: job.task_id(job_id, part) for part in missing}
                jobs = ask(list(ids.values()))
                states = {part: jobs.get(task) for part, task in ids.items()}
            except (SlurmRejected, SlurmUnreachable):
                answered = False
        well = {part for part, queued in states.items() if queued and queued.state == "COMPLETED"}
        done |= well
        states = {part: queued for part, queued in states.items() if part not in well}
        if on_progress is not None:
            on_progress(len(done), job.parts)
        if len(done) == job.parts:
            return
        going = any(queued is not None and queued.is_active for queued in states.values())
        if going or not answered:  # a squeue that is down or crashes says nothing of the parts
            still_since = None
        else:
            now = time.monotonic()
            still_since = now if still_since is None else still_since
            if now - still_since >= (min(lost_s, lag_s) if _all_lost(states) else lag_s):
                raise _failed(job, states)
        time.sleep(poll_s)


def _all_lost(states: Mapping[int, QueuedJob | None]) -> bool:
    return all(queued is not None and queued.state in _LOST for queued in states.values())


def _ask(job_ids: Sequence[str]) -> dict[str, QueuedJob]:
    jobs = scheduler().queued(job_ids)
    forgotten = [job_id for job_id in job_ids if job_id not in jobs]
    if forgotten:
        try:
            jobs |= scheduler().accounted(forgotten)
        except (SlurmRejected, SlurmUnreachable):
            pass  # a site without accounting: the marks show what ended well
    return jobs


def _failed(job: ArrayJob, states: Mapping[int, QueuedJob | None]) -> MgptError:
    lines = []
    for part, queued in list(states.items())[:_SHOWN]:
        state = queued.state if queued is not None else "gone"
        lines.append(f"\n  - part {part}: {state}, {job.log(part)}: {_last_line(job.log(part))}")
    more = f"\n  - and {len(states) - _SHOWN} more" if len(states) > _SHOWN else ""
    return MgptError(
        f"{len(states)} of {job.parts} parts did not end well:{''.join(lines)}{more}",
        fix="mend the reason and give the same command again; what is done is not done twice",
    )


def _last_line(log: Path) -> str:
    lines = (text_of(log) or "").splitlines()
    return next((text for line in reversed(lines) if (text := first_line(line))), "no output")


def _mgpt4(arguments: Sequence[str]) -> str:
    return f"{_python('mgpt4_hpc.cli.main')} {shlex.join(arguments)}"


def _python(module: str) -> str:
    # -P: the folder that this is called from must not shadow the installed package.
    return shlex.join([sys.executable, "-P", "-m", module])


def _script(name: str, wants: Wants, options: Mapping[str, object], command: str) -> str:
    wanted: dict[str, object] = {
        "job-name": name,
        "partition": wants.partition,
        "account": wants.account,
        "ntasks": 1,
        **options,
        "open-mode": "append",
        "requeue": None,
    }
    wanted = without_rivals(wanted, wants.sbatch)
    flags = [
        f"#SBATCH --{key}" if value is None else f"#SBATCH --{key}={shlex.quote(str(value))}"
        for key, value in wanted.items()
        if value is not None or key == "requeue"
    ]
    return "\n".join(["#!/bin/bash", *flags, "", command, ""])


def _sbatch(path: Path, script: str) -> str:
    path.write_text(script)
    environ = clean_environment(os.environ)
    return submit([str(path)], environ)

"""A run's log files: which there are, and which part of one belongs to an attempt.

They are named ``JOBID_RANK_log.out``, as submitit does. A requeued job appends to its file. Each
start of a task begins with a line of submitit's, except in successors, arrays of runs and plain
batch scripts, and each rank then says which attempt it is (before, only rank 0 did).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from mgpt4_hpc.errors import ConfigError, MgptError
from mgpt4_hpc.formatting import first_line, shell_word
from mgpt4_hpc.launch.runs.job_ref import read_note
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.ledger import read_ledgers

_FILE = re.compile(r"(?P<job>\d+(?:_\d+)?)_(?P<rank>\d+)_log\.out")
_TASK_START = re.compile(rb"^submitit INFO \(.*\) - Starting with ")
_BANNER = re.compile(rb"^(?:\d\d:\d\d:\d\d )?=== .*: attempt (\d+)(?:, rank \d+ of | on )")
"""As ``train.run`` prints it, or an earlier version."""
_CHUNK = 1 << 16


@dataclass(frozen=True)
class LogFile:
    """One rank's log of one job."""

    path: Path
    job_id: str
    rank: int


def log_files(run: RunDir) -> list[LogFile]:
    """All logs of a run, those of the newest job last."""
    logs = []
    try:
        paths = list(run.slurm.iterdir())
    except OSError:
        return []
    for path in paths:
        match = _FILE.fullmatch(path.name)
        if match:
            logs.append(LogFile(path, match["job"], int(match["rank"])))
    newest = next(iter(_newest_jobs(run)), None)
    # Process ids wrap around, so a job's number does not show its age; its file's time does.
    return sorted(logs, key=lambda log: (log.job_id == newest, log.path.stat().st_mtime))


_ERROR = re.compile(r"\b(?:error|fatal): |^[\w.]+(?:Error|Exception): ", re.IGNORECASE)
_CONSEQUENCE = re.compile(r"^srun: |CANCELLED|Terminated|Killed|submitit ERROR")
"""Lines about an error that say nothing of its cause."""


def last_error(run: RunDir, job_id: str) -> str:
    """The last line of a job's logs that names an error; "" without one.

    Ranks that never came to write a ledger leave nothing else: a missing program, an import.
    """
    for log in reversed([log_file for log_file in log_files(run) if log_file.job_id == job_id]):
        try:
            with log.path.open("rb") as file:
                file.seek(max(0, log.path.stat().st_size - _CHUNK))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            continue
        for line in reversed(lines):
            if _ERROR.search(line) and not _CONSEQUENCE.search(line):
                return first_line(line).removeprefix("slurmstepd: ").removeprefix("error: ")
    return ""


def _newest_jobs(run: RunDir) -> list[str]:
    """The job that was submitted last and those that it succeeds, newest first."""
    noted = read_note(run)
    job_ids = [*(noted.get("succeeds") or ()), noted.get("job_id")]
    return [str(job_id) for job_id in reversed(job_ids) if job_id is not None]


def choose_log(run: RunDir, rank: int, job_id: str | None = None) -> LogFile | None:
    """A rank's log of the newest job, or of a given one; None if there is none yet.

    While a job that succeeds another waits, the newest log is that of the other.

    Raises:
        ConfigError: if that job has logs, but not of this rank; it names the ranks.
    """
    logs = log_files(run)
    if job_id is None:
        jobs = _newest_jobs(run) or ([logs[-1].job_id] if logs else [])
        with_logs = {log.job_id for log in logs}
        job_id = next((job for job in jobs if job in with_logs), None)
    of_job = [log for log in logs if log.job_id == job_id]
    for log in of_job:
        if log.rank == rank:
            return log
    if of_job and rank != 0:
        ranks = sorted(log.rank for log in of_job)
        raise ConfigError(
            f"rank {rank} of {run.name} has no log",
            fix=f"use one of the ranks of job {job_id}: {', '.join(map(str, ranks))}",
        )
    return None


def attempt_bytes(run: RunDir, rank: int, number: int) -> bytes:
    """The part of a rank's log that belongs to one attempt.

    Raises:
        ConfigError: if there is no such attempt; it names those that there are.
        MgptError: if the attempt left no log.
    """
    attempts = {attempt.number: attempt for attempt in read_ledgers(run.ledger)}
    if number not in attempts:
        known = ", ".join(map(str, attempts)) or "none yet"
        raise ConfigError(f"{run.name} has no attempt {number}", fix=f"its attempts: {known}")
    attempt = attempts[number]
    log = choose_log(run, rank, attempt.job_id or None)
    parts = split_starts(log.path.read_bytes()) if log is not None else []
    for part in parts:
        if attempt_of(part) == number:
            return part
    # Who says no number ended early, or is of an earlier version: the job's restarts are counted.
    starts = [part for part in parts if _TASK_START.match(part)]
    if attempt.restart_count < len(starts) and attempt_of(starts[attempt.restart_count]) is None:
        return starts[attempt.restart_count]
    raise MgptError(
        f"attempt {number} of {run.name} left no log of rank {rank}",
        fix=f"see all of its job: mgpt4 logs {shell_word(run.name)} --rank {rank}",
    )


def split_starts(data: bytes) -> list[bytes]:
    """A log cut where a task restarted, or, without submitit's line, where its own line says so."""
    cuts = [0]
    position = 0
    introduced = False  # submitit's line has come, and the banner after it not yet
    for line in data.splitlines(keepends=True):
        if _TASK_START.match(line):
            cuts.append(position)
            introduced = True
        elif _BANNER.match(line):
            if not introduced:
                cuts.append(position)
            introduced = False
        position += len(line)
    cuts.append(len(data))
    return [data[a:b] for a, b in pairwise(cuts) if b > a]


def attempt_of(part: bytes) -> int | None:
    """Number of the attempt that a part says it is."""
    for line in part.splitlines():
        match = _BANNER.match(line)
        if match:
            return int(match[1])
    return None


class Follower:
    """Reads what was appended to a file since the last look.

    Args:
        path: the file; it may not be there yet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._position = 0

    def new_chunks(self) -> Iterator[bytes]:
        """All that came since the last call."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) < self._position:
                    self._position = 0  # truncated: a job that does not append restarted
                file.seek(self._position)
                while chunk := file.read(_CHUNK):
                    self._position += len(chunk)
                    yield chunk
        except OSError:
            return

    def skip_to_last_lines(self, count: int) -> None:
        """Begin with the last ``count`` lines."""
        try:
            data = self.path.read_bytes()
        except OSError:
            return
        lines = data.splitlines(keepends=True)
        self._position = len(data) - sum(map(len, lines[-count:])) if count else len(data)

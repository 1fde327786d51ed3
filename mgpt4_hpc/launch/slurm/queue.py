"""What Slurm's queue and accounting say of any number of jobs, in one call to each.

Asking once per job would be rude to the controller and slow; a hundred ids fit into one call.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from mgpt4_hpc.errors import SlurmRejected, SlurmUnreachable
from mgpt4_hpc.formatting import first_line
from mgpt4_hpc.launch.slurm.commands import run_slurm

ACTIVE = frozenset(
    {
        "PENDING",
        "CONFIGURING",
        "RUNNING",
        "COMPLETING",
        "SUSPENDED",
        "STOPPED",
        "SIGNALING",
        "RESIZING",
        "STAGE_OUT",
        "REQUEUED",
        "REQUEUE_FED",
        "REQUEUE_HOLD",
        "SPECIAL_EXIT",
        "RESV_DEL_HOLD",
    }
)
"""States of a job that is not over."""

_FIELDS = (
    ("JobArrayID", 64),
    ("State", 32),
    ("Reason", 200),
    ("NodeList", 500),
    ("EligibleTime", 32),
    ("StartTime", 32),
    ("PreemptTime", 32),
    ("RestartCnt", 12),
    ("exit_code", 16),
    ("Dependency", 300),
    ("UserID", 12),
    ("Name", 128),
    # The last: a path may hold the sign that separates the fields.
    ("WorkDir", 1024),
)
# squeue -O cuts a field at its width (default 20), so every width is generous.
_SQUEUE_FORMAT = ",".join(f"{name}:{width}|" for name, width in _FIELDS)
_SACCT_FORMAT = "JobID,State,ExitCode,Start,End,NodeList,Reason,UID,JobName,WorkDir"

DEPENDENCY = "Dependency"
"""Reason of a job that waits for another."""
NEVER_SATISFIED = "DependencyNeverSatisfied"
"""Reason of a job that waits, or was cancelled by Slurm, because what it waited for failed."""

_PERSONAL = re.compile(r"^(SQUEUE_|SACCT_|SLURM_TIME_FORMAT$)")
_MOST_ID_CHARS = 100_000
"""Linux takes 128 KiB in one argument. Beyond this all jobs are asked for."""
_UNKNOWN_ID = re.compile(r"invalid job id", re.IGNORECASE)


@dataclass(frozen=True)
class QueuedJob:
    """One job as squeue or sacct shows it; times are unix seconds, None where not known.

    Attributes:
        job_id: Slurm's; of an array's task as ``17_3``.
        state: as RUNNING, PENDING, CANCELLED, in full.
        reason: why it waits, as Priority; empty if there is none.
        nodes: node list as Slurm writes it; empty while it waits.
        eligible_at: before this it may not start.
        start_at: when it started, or is expected to.
        end_at: when it ended; sacct alone knows.
        preempt_at: when its preemption began; stays set after the requeue.
        restarts: how often it was requeued; sacct does not know and says 0.
        exit_code: ``CODE:SIGNAL``, empty where not known.
        cancelled_by: user id of who cancelled it; sacct alone knows.
        user_id, name, work_dir: its owner, and what identifies it among the owner's jobs.
    """

    job_id: str
    state: str
    reason: str = ""
    nodes: str = ""
    eligible_at: float | None = None
    start_at: float | None = None
    end_at: float | None = None
    preempt_at: float | None = None
    restarts: int = 0
    exit_code: str = ""
    cancelled_by: str = ""
    user_id: str = ""
    name: str = ""
    work_dir: str = ""

    @property
    def is_active(self) -> bool:
        """Whether it runs or may yet run."""
        return self.state in ACTIVE


def ask_squeue(job_ids: Iterable[str], cluster: str = "") -> dict[str, QueuedJob]:
    """The jobs that the controller remembers: the waiting, the running, those just over.

    Args:
        job_ids: of this cluster.
        cluster: another one to be asked instead.

    Raises:
        SlurmUnreachable: squeue is missing, or the controller does not answer, or nothing that can
            be understood.
        SlurmRejected: any other complaint of squeue.
    """
    wanted = _ids(job_ids)
    if not wanted:
        return {}
    command = ["squeue", "--noheader", "--all", "--array", "--states=all"]
    command += [*_jobs_option(wanted), "--Format", _SQUEUE_FORMAT]
    try:
        output = _run(command, cluster)
    except SlurmRejected as error:
        # Said of a single id that is forgotten; of several it leaves the unknown ones out.
        if _UNKNOWN_ID.search(error.what):
            return {}
        raise
    jobs = _understood("squeue", output, parse_squeue(output))
    return {job.job_id: job for job in jobs if job.job_id in wanted}


def ask_sacct(job_ids: Iterable[str], cluster: str = "") -> dict[str, QueuedJob]:
    """The same from the accounting, which remembers for months; of each job the last start.

    Raises:
        SlurmUnreachable: sacct is missing or its daemon does not answer.
        SlurmRejected: there is no accounting, or any other complaint.
    """
    wanted = _ids(job_ids)
    if not wanted:
        return {}
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--allusers"]
    command += [*_jobs_option(wanted), f"--format={_SACCT_FORMAT}"]
    output = _run(command, cluster)
    jobs = _understood("sacct", output, parse_sacct(output))
    return {job.job_id: job for job in jobs if job.job_id in wanted}


_ENDS_TIMEOUT_S = 5.0


def ended_starts(
    job_id: str, ask: Callable[[Sequence[str]], str] | None = None
) -> list[tuple[float, str]]:
    """(unix time, state) of the end of each of a job's earlier starts, oldest first, by accounting.

    Args:
        job_id: of the job; accounting may have lost its oldest starts.
        ask: for the output of sacct, times in unix seconds; replaced by tests.

    Raises:
        SlurmRejected, SlurmUnreachable: accounting does not answer.
        ValueError: its answer cannot be understood.
    """
    command = ("sacct", "-D", "-X", "-n", "-P", "-j", job_id, "-o", "End,State")
    rows = [row.split("|") for row in (ask or _ask_ends)(command).splitlines()]
    ended = [row for row in rows if len(row) == 2 and row[0][:1].isdigit()]
    return [(float(when), state.split()[0]) for when, state in ended]


def _ask_ends(command: Sequence[str]) -> str:
    environ = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    # Nothing but the history depends on this answer.
    return run_slurm(command, timeout_s=_ENDS_TIMEOUT_S, environ=environ)


def parse_squeue(output: str) -> list[QueuedJob]:
    """Rows of squeue in our format; others are passed over."""
    jobs = []
    for row in _rows(output, len(_FIELDS)):
        job_id, state, reason, nodes, eligible, start, preempt, restarts, code = row[:-4]
        dependency, user_id, name, work_dir = row[-4:]
        if state.upper() == "CANCELLED" and dependency not in ("(null)", ""):
            # Slurm 22.05 gives this as the reason, 24.11 gives none.
            reason = NEVER_SATISFIED if "(failed)" in dependency else DEPENDENCY
        jobs.append(
            QueuedJob(
                job_id=job_id,
                state=state.upper(),
                reason="" if reason in ("None", "(null)") else reason,
                nodes=_node_list(nodes),
                eligible_at=_unix_time(eligible),
                start_at=_unix_time(start),
                preempt_at=_unix_time(preempt),
                restarts=int(restarts) if restarts.isdigit() else 0,
                exit_code=_wait_status(code),
                user_id=user_id,
                name=name,
                work_dir=work_dir,
            )
        )
    return jobs


def parse_sacct(output: str) -> list[QueuedJob]:
    """Rows of sacct in our format; others are passed over."""
    jobs = []
    for row in _rows(output, len(_SACCT_FORMAT.split(","))):
        job_id, state, code, start, end, nodes, reason, user_id, name, work_dir = row
        # "CANCELLED by 1000"; a state may also end in "+", the sign of a cut word.
        word, _, by = state.partition(" by ")
        unstarted = reason == DEPENDENCY or _unix_time(start) is None
        if word.startswith("CANCELLED") and not by and unstarted:
            # No user did it, so Slurm did. 22.05 gives the reason and a start, 24.11 neither.
            reason = NEVER_SATISFIED
        jobs.append(
            QueuedJob(
                job_id=job_id,
                state=word.rstrip("+").upper(),
                reason="" if reason in ("None", "(null)") else reason,
                nodes=_node_list(nodes),
                start_at=_unix_time(start),
                end_at=_unix_time(end),
                exit_code=code,
                cancelled_by=by.strip(),
                user_id=user_id,
                name=name,
                work_dir=work_dir,
            )
        )
    return jobs


def _understood(tool: str, output: str, jobs: list[QueuedJob]) -> list[QueuedJob]:
    """The jobs; an answer that holds none and is not empty must not pass for "no such job"."""
    if not jobs and output.strip():
        raise SlurmUnreachable(
            f"`{tool}` gave an answer that cannot be understood: {first_line(output)[:80]}",
            fix=f"see what `type {tool}` says: it may be a wrapper of this site",
        )
    return jobs


def _rows(output: str, width: int) -> Iterator[list[str]]:
    for line in output.splitlines():
        cells = [cell.strip() for cell in line.split("|", width - 1)]
        if len(cells) == width and cells[0]:
            yield [*cells[:-1], cells[-1].removesuffix("|").rstrip()]


def _ids(job_ids: Iterable[str]) -> frozenset[str]:
    return frozenset(str(job_id) for job_id in job_ids if re.fullmatch(r"\d+(_\d+)?", str(job_id)))


def _jobs_option(wanted: frozenset[str]) -> list[str]:
    listed = ",".join(sorted(wanted))
    return [f"--jobs={listed}"] if len(listed) <= _MOST_ID_CHARS else []


def _node_list(text: str) -> str:
    return "" if text in ("None assigned", "(null)", "N/A") else text


def _unix_time(text: str) -> float | None:
    if text.isdigit():
        return float(text)
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def _wait_status(text: str) -> str:
    """``CODE:SIGNAL`` of the wait status that squeue prints."""
    if ":" in text or not text.isdigit():
        return text
    status = int(text)
    return f"{status >> 8}:{status & 0x7F}"


def _run(command: list[str], cluster: str) -> str:
    try:
        with _plain_environment():
            output = run_slurm(command, cluster=cluster) if cluster else run_slurm(command)
    except (SlurmRejected, SlurmUnreachable) as error:
        # The format string of this command helps only readers of the code.
        what = first_line(error.what.replace(" ".join(command), command[0]))
        raise type(error)(what, why=error.why, fix=error.fix) from None
    # Where a cluster is named, squeue heads its rows with the name, whatever --noheader.
    return re.sub(r"^CLUSTER: .*\n", "", output)


@contextmanager
def _plain_environment() -> Iterator[None]:
    """Hide the variables by which users filter and format these commands for themselves.

    Times come as unix seconds: local ones are ambiguous when the clocks go back.
    """
    hidden = {name: os.environ.pop(name) for name in list(os.environ) if _PERSONAL.match(name)}
    os.environ["SLURM_TIME_FORMAT"] = "%s"
    try:
        yield
    finally:
        del os.environ["SLURM_TIME_FORMAT"]
        os.environ.update(hidden)

"""What a run is doing, in a word and in a sentence. Pure functions of what was read and asked."""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from mgpt4_hpc.formatting import clock_time, duration, first_line, shell_word
from mgpt4_hpc.launch.runs.run_facts import RunFacts
from mgpt4_hpc.launch.slurm.queue import DEPENDENCY, NEVER_SATISFIED, QueuedJob
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.bad_nodes import nodes_found_bad
from mgpt4_hpc.telemetry.causes import Cause
from mgpt4_hpc.telemetry.event_kinds import RUNNING_CAUSE, UNKNOWN_CAUSE

SILENT_S = 300.0
"""A running job without a write for this long is shown as silent; NFS alone may hide a minute."""

FRESH_S = 120.0
"""A sign of life younger than this means a living process, where Slurm does not answer."""

LAG_S = 60.0
"""A job so young may not be known everywhere yet."""

LAST_FAULT = "; the last fault: "
"""Between the count of a run that was given up and what went wrong each time."""


class RunState(StrEnum):
    """The word, for scripts."""

    PENDING = "pending"
    RUNNING = "running"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    CANCELLED = "cancelled"
    LOST = "lost"
    UNKNOWN = "unknown"

    @property
    def is_live(self) -> bool:
        """Whether a job of the run is in the queue or running."""
        return self in (RunState.PENDING, RunState.RUNNING)


class AnswerSource(StrEnum):
    """Who said so."""

    SQUEUE = "squeue"
    SACCT = "sacct"
    PROCESS = "process"
    FOLDER = "run folder"


@dataclass(frozen=True)
class Status:
    """The word, the sentence, who said so, and how old that may be.

    Attributes:
        as_of: unix time up to which the state is certain, where it is accounting's last word and
            the controller does not answer; None where it is of now.
    """

    state: RunState
    text: str
    source: AnswerSource
    as_of: float | None = None


@dataclass(frozen=True)
class JobAnswer:
    """What could be found out about a run's job from outside its folder.

    Attributes:
        job: as squeue, or else sacct, shows it; None if neither knows it.
        source: which of them.
        asked: whether at least one of them could be asked at all.
        alive: whether the local controller lives; None where that is not the question, or
            where it runs on another machine.
        waited_for: for a job that waits for another, or that Slurm will not start, the run that
            it waits or waited for; None if there is none.
        waited_for_finished: whether that run is finished.
    """

    job: QueuedJob | None = None
    source: AnswerSource = AnswerSource.FOLDER
    asked: bool = True
    alive: bool | None = None
    waited_for: RunDir | None = None
    waited_for_finished: bool = False


_ENDED = {
    Cause.TIME_LIMIT: "time limit reached",
    Cause.SIGNALLED: "stopped by a signal",
    Cause.HUNG: "hung",
    RUNNING_CAUSE: "killed",
    UNKNOWN_CAUSE: "killed",
}

_WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_FED"})
_HELD = frozenset({"REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"})
_HOLDS = {
    "launch failure limit": "held after too many requeues by Slurm (MaxBatchRequeue)",
    "jobholdmaxrequeue": "held after too many requeues by Slurm (MaxBatchRequeue)",
    "launch failed": "held because a node could not start it",
}
"""Parts of Slurm's reasons, in lower case, and what they mean."""
_RELEASED = frozenset({"", "BeginTime", "Priority", "Resources", DEPENDENCY})
"""Reasons of a job that waits for its turn; one that was released is REQUEUE_HOLD until it runs.

Until Slurm's next look at it a released job has none.
"""

_FAILURES = frozenset({"FAILED", "OUT_OF_MEMORY", "BOOT_FAIL"})


def describe_run(facts: RunFacts, answer: JobAnswer, now: float | None = None) -> Status:
    """What the run is doing.

    The order of trust: the run's own word that it is finished, then squeue, then sacct, then the
    rest of the run folder.

    Args:
        facts: of its folder.
        answer: of Slurm, or of the machine's process table.
        now: unix time; replaced by tests.
    """
    now = time.time() if now is None else now
    if facts.finished:
        early = facts.max_steps is not None and 0 < facts.step < facts.max_steps
        return Status(
            RunState.FINISHED, "finished early" if early else "finished", AnswerSource.FOLDER
        )
    if facts.job is None and facts.job_is_lost:
        return Status(RunState.UNKNOWN, "unknown: slurm/job.json is damaged", AnswerSource.FOLDER)
    if facts.copied_from is not None:
        how = f"run `mgpt4 resume {_word(facts)} --as NAME`"
        original = facts.copied_from
        if not Path(original).is_dir():
            original = f"a run that was in {original}"
        sentence = f"stopped: a copy of {original}, without a job; {how}"
        return Status(RunState.STOPPED, sentence, AnswerSource.FOLDER)
    if facts.job is None:
        sentence = "stopped: never submitted; run " + _resume(facts)
        return Status(RunState.STOPPED, sentence, AnswerSource.FOLDER)
    if answer.job is not None:
        state, text = _of_job(facts, answer, answer.job, now)
        as_of = _as_of(facts, answer, state, now)
        if as_of is not None:
            text += f", as of {clock_time(as_of, now)}"
        return Status(state, text, answer.source, as_of)
    if answer.alive is not None:
        if answer.alive:
            return Status(*_alive(facts, now), AnswerSource.PROCESS)
        return Status(*_gone(facts, now, "its process ended without a word"), AnswerSource.PROCESS)
    return Status(*_unseen(facts, answer.asked, now), AnswerSource.FOLDER)


def _as_of(facts: RunFacts, answer: JobAnswer, state: RunState, now: float) -> float | None:
    """The last moment at which the state is certain; None if that is now."""
    job = answer.job
    # Accounting is believed about a job that is not over only while squeue does not answer.
    if job is None or answer.source is not AnswerSource.SACCT or not job.is_active:
        return None
    sign = facts.last_sign_at
    if state is RunState.RUNNING and sign is not None and now - sign < FRESH_S:
        return None  # its own word is as good as squeue's
    submitted = facts.job.since if facts.job is not None else None
    known = [at for at in (sign, job.start_at, submitted) if at is not None and at <= now]
    return max(known, default=None)


# -- Slurm knows the job --------------------------------------------------------------------


def _of_job(facts: RunFacts, answer: JobAnswer, job: QueuedJob, now: float) -> tuple[RunState, str]:
    never_starts = job.reason == NEVER_SATISFIED
    # One that the user cancels keeps its dependency.
    if never_starts and (
        job.state == "PENDING" or (job.state == "CANCELLED" and not job.cancelled_by)
    ):
        return RunState.STOPPED, _never_started(facts, answer)
    if job.state in (*_WAITING, *_HELD):
        return _waiting(facts, job, now, answer.waited_for)
    if job.state in ("SUSPENDED", "STOPPED"):
        return RunState.PENDING, "suspended: it goes on where it was"
    if job.state == "COMPLETING" and facts.cancel:
        return RunState.RUNNING, "cancelled: ending"
    if job.state == "COMPLETING":
        came_back = job.restarts > (0 if facts.last is None else facts.last.restart_count)
        return RunState.RUNNING, f"ending ({_why(facts)}{', requeued' if came_back else ''})"
    if job.state == "CONFIGURING":
        return RunState.PENDING, "starting: its nodes are being prepared"
    if job.is_active:
        return _alive(facts, now, job)
    return _over(facts, job, now)


def _hold(job: QueuedJob) -> str:
    """How a job that Slurm holds in the queue gets on; empty if it is not held."""
    if job.reason == "JobHeldAdmin":
        return "held by an administrator, who alone can release it: ask the cluster's support"
    reason = job.reason.lower().replace("_", " ")
    if job.reason in _RELEASED:
        return ""
    if job.state not in _HELD and "held" not in reason and "jobhold" not in reason:
        return ""
    why = next((why for part, why in _HOLDS.items() if part in reason), "held")
    return f"{why}: `scontrol release {job.job_id}`"


def _waiting(
    facts: RunFacts, job: QueuedJob, now: float, waited_for: RunDir | None
) -> tuple[RunState, str]:
    if hold := _hold(job):
        when = hold
    elif job.eligible_at is not None and job.eligible_at > now + 0.5:
        when = f"eligible in {duration(job.eligible_at - now)}"
    else:
        reason = job.reason or "no reason given"
        if waited_for is not None and job.reason == DEPENDENCY:
            reason = f"waits for {shell_word(waited_for.name)}"
        when = f"pending ({reason})"
        if job.start_at is not None and job.start_at > now + 60:
            when += f", expected to start in {duration(job.start_at - now)}"
    last, noted = facts.last, facts.job
    if last is not None and noted is not None and last.job_id in (noted.job_id, *noted.succeeds):
        again = "requeued" if last.job_id == noted.job_id else "submitted again"
        when = f"{_why(facts)}, {again}, {when}"
    return RunState.PENDING, when


def _alive(facts: RunFacts, now: float, job: QueuedJob | None = None) -> tuple[RunState, str]:
    """The job, or the local controller, is running."""
    last = facts.last
    restarts = job.restarts if job is not None and job.restarts else None
    begun = (
        last is not None
        and facts.job is not None
        and last.job_id == facts.job.job_id
        # sacct does not count restarts: then the newest attempt is taken for the current one.
        and (restarts is None or last.restart_count == restarts)
    )
    if facts.cancel:
        return RunState.RUNNING, "cancelled: saving, then it ends"
    if last is None or not begun:
        return RunState.RUNNING, "starting"
    if last.ended:
        if job is None and last.requeue is not None:
            return RunState.RUNNING, f"{_why(facts)}, starting again"
        return RunState.RUNNING, f"stopping ({_why(facts)})"
    if job is not None and job.preempt_at is not None:
        return RunState.RUNNING, "being preempted: saving"
    if last.first_step is None:
        return RunState.RUNNING, "starting"
    silent_s = now - (facts.last_sign_at or last.start)
    if silent_s > SILENT_S:
        return RunState.RUNNING, f"running, but silent for {duration(silent_s)}"
    return RunState.RUNNING, "running"


def _over(facts: RunFacts, job: QueuedJob, now: float) -> tuple[RunState, str]:
    """Slurm says that the job is over, and the run is not finished."""
    left_behind = _left_behind(facts)
    if left_behind is not None:
        return left_behind
    if job.state == "CANCELLED":
        by = f" by user {job.cancelled_by}" if job.cancelled_by else ""
        return RunState.CANCELLED, f"cancelled{by}"
    # The last ledger line may be on its way through the file system.
    just_now = job.end_at is not None and now - job.end_at < LAG_S
    if job.state == "COMPLETED" and just_now:
        return RunState.RUNNING, "ending"
    if job.state in _FAILURES:
        code = f", exit code {job.exit_code.partition(':')[0]}" if job.exit_code else ""
        text = f"failed: Slurm says {job.state}{code}; read `mgpt4 logs {_word(facts)}`"
        return RunState.FAILED, text
    return RunState.STOPPED, f"stopped (Slurm says {job.state}): run {_resume(facts)}"


# -- known from the folder alone --------------------------------------------------------------


def _gone(facts: RunFacts, now: float, how: str) -> tuple[RunState, str]:
    """No job and no process is left, and the run is not finished."""
    left_behind = _left_behind(facts)
    if left_behind is not None:
        return left_behind
    last = facts.last
    if last is not None and last.ended and not _came_back(last):
        return RunState.STOPPED, f"stopped ({_why(facts)}): run {_resume(facts)}"
    sign = facts.last_sign_at
    ago = f", last sign of life {duration(now - sign)} ago" if sign is not None else ""
    return RunState.LOST, f"lost: {how}{ago}; run {_resume(facts)}"


def _unseen(facts: RunFacts, asked: bool, now: float) -> tuple[RunState, str]:
    """Slurm does not know the job, or does not answer; or the process is on another machine."""
    job = facts.job
    assert job is not None
    fresh = facts.last_sign_at is not None and now - facts.last_sign_at < FRESH_S
    last = facts.last
    if fresh and last is not None and not last.ended:
        return RunState.RUNNING, "running" if last.first_step is not None else "starting"
    if asked and now - job.since < LAG_S and (last is None or last.job_id != job.job_id):
        # Slurm forgets a task at once that was cancelled while it waited with others of its array.
        if facts.cancel:
            return RunState.CANCELLED, "cancelled"
        return RunState.PENDING, "submitted a moment ago"
    if job.executor == "slurm" and not asked:
        # A cancel that was asked for proves nothing: the job may wait, or come back from a requeue.
        its_last = last if last is not None and last.job_id == job.job_id else None
        ended = its_last is not None and its_last.ended and not _came_back(its_last)
        if facts.failed is not None or ended:
            left_behind = _left_behind(facts)
            if left_behind is not None:
                return left_behind
        if last is not None and last.ended:
            came_back = ", requeued" if _came_back(last) else ""
            return RunState.UNKNOWN, f"unknown: {_why(facts)}{came_back}; Slurm does not answer"
        return RunState.UNKNOWN, "unknown: Slurm does not answer"
    how = {
        "slurm": f"Slurm does not know job {job.job_id}",
        "local": f"process {job.job_id} on {job.hostname or 'an unknown machine'} is silent",
    }.get(job.executor, "its processes are silent")
    return _gone(facts, now, how)


# -- words ------------------------------------------------------------------------------------


def _came_back(attempt: Attempt) -> bool:
    return bool((attempt.requeue or {}).get("accepted"))


def _left_behind(facts: RunFacts) -> tuple[RunState, str] | None:
    """What the process that ended the run wrote for the user."""
    if facts.failed is not None:
        return RunState.FAILED, f"failed: {failure(facts)[0]}"
    cancelled = facts.last is not None and facts.last.cause == Cause.CANCELLED
    if facts.cancel or cancelled:
        return RunState.CANCELLED, "cancelled"
    if facts.resubmit is not None:
        return RunState.STOPPED, f"stopped: run {_resume(facts)}"
    return None


def failure(facts: RunFacts) -> tuple[str, tuple[str, ...]]:
    """Why a run was given up, in a line, and what else its FAILED file says."""
    lines = map(first_line, (facts.failed or "").splitlines())
    first, *rest = [line for line in lines if line] or ["no reason given"]
    count, _, fault = first.partition(LAST_FAULT)
    return (fault, (count, *rest)) if fault else (count, tuple(rest))


def _why(facts: RunFacts) -> str:
    """Why the newest attempt ended."""
    last = facts.last
    if last is None:
        return "before its first attempt"
    if last.cause == Cause.REQUEUED:
        return "put back by Slurm"
    if last.cause == Cause.BAD_NODE:
        return f"bad node {', '.join(nodes_found_bad([last]))}".rstrip()
    return _ENDED.get(last.cause, last.cause)


def _resume(facts: RunFacts) -> str:
    return f"`mgpt4 resume {_word(facts)}`"


def _word(facts: RunFacts) -> str:
    return shell_word(facts.run.name)


def _never_started(facts: RunFacts, answer: JobAnswer) -> str:
    first = answer.waited_for
    if first is None:
        return f"stopped: the job it waited for did not succeed; run {_resume(facts)}"
    name = shell_word(first.name)
    if answer.waited_for_finished:
        return f"stopped: Slurm removed it, though {name} is finished; run {_resume(facts)}"
    return f"stopped: {name}, which it waited for, did not finish; run `mgpt4 resume {name}`"

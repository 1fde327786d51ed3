"""The end of an attempt that did not finish: find out why, decide, carry it out.

Rank 0 does this after its last save. Where no rank lived to do it, the batch script does (or the
local controller), so that exactly one of them requeues.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from mgpt4_hpc.config.run_config_file import read_own_config
from mgpt4_hpc.config.schema import LaunchConfig
from mgpt4_hpc.errors import EXIT_RESUMABLE, BadNode, FatalTrainingError, MgptError, SlurmRejected
from mgpt4_hpc.launch.job.event_hooks import hook_event, run_hooks
from mgpt4_hpc.launch.job.requeue_policy import Action, Decision, PastAttempt, classify, decide
from mgpt4_hpc.launch.job.successor import submit_successor
from mgpt4_hpc.launch.runs.cancel_request import is_cancelled
from mgpt4_hpc.launch.runs.logs import last_error
from mgpt4_hpc.launch.runs.run_state import LAST_FAULT
from mgpt4_hpc.launch.slurm import commands
from mgpt4_hpc.launch.slurm.commands import JobFacts
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.launch.slurm.node_exclusion import exclude_nodes
from mgpt4_hpc.launch.slurm.scheduler import scheduler
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.bad_nodes import nodes_found_bad
from mgpt4_hpc.telemetry.causes import Cause
from mgpt4_hpc.telemetry.ledger import read_ledgers

EXIT_RESTART = 144
"""What submitit's local job side means by "start me again"."""

_FOUND_OUT = frozenset(
    {
        Cause.PREEMPTED,
        Cause.TIME_LIMIT,
        Cause.SIGNALLED,
        Cause.CANCELLED,
        Cause.CRASHED,
        Cause.HUNG,
        Cause.BAD_NODE,
    }
)
"""Causes that stay true after rank 0 died."""

_MOST_UNREAD = 100
"""A job with this many restarts may be in a loop that its unreadable ledger would show."""

_FINAL = re.compile(r"disabled|(?:access|permission) denied|invalid job id", re.IGNORECASE)
"""In Slurm's refusal of a requeue that it will not change its mind about in seconds."""
_FORGOTTEN = re.compile(r"invalid job id", re.IGNORECASE)
"""In Slurm's answer about a job that it does not know any more."""

_TRIES = 3
_PAUSE_S = 1.0
_LEAST_WAIT_S = 2.0
"""Less is no chance for a controller that is merely busy."""

T = TypeVar("T")


def find_decision(
    run: RunDir,
    start: JobStart,
    budget: LaunchConfig,
    signal_name: str | None,
    this: PastAttempt,
    *,
    until: float | None = None,
    in_rank: bool = False,
) -> Decision:
    """Why this attempt ends and what becomes of the run.

    The budgets are those of a job: a new submission by the user resets them.

    Args:
        run: the run.
        start: the job's start.
        budget: limits, and how long before the time limit Slurm warns.
        signal_name: the stop signal; None if the ranks ended without one.
        this: whether the attempt progressed, and its cause where rank 0 found it out and died
            before it could act.
        until: when this process is killed, seconds since the epoch; None if that is not known.
        in_rank: asked by a rank, which may be in a container without Slurm's commands.
    """
    if in_rank and start.executor == "slurm" and not commands.has_scontrol():
        return Decision(Cause(this.cause), Action.DEFER, "the batch script decides what follows")
    cause, requeue_allowed = ask_slurm(start, budget, signal_name, until)
    if this.cause in _FOUND_OUT and cause not in (Cause.REQUEUED, Cause.CANCELLED):
        cause = Cause(this.cause)
    if cause is not Cause.REQUEUED and is_cancelled(run, start):
        cause = Cause.CANCELLED
    attempts = [attempt for attempt in read_ledgers(run.ledger) if start.is_of_job(attempt)]
    if cause is Cause.BAD_NODE and start.executor == "local":
        return Decision(cause, Action.GIVE_UP, "this machine is unfit, and there is no other")
    decision = decide(
        cause,
        this,
        [past(attempt) for attempt in attempts if not start.is_of(attempt)],
        budget,
        requeue_allowed=requeue_allowed,
        bad_nodes=len(nodes_found_bad(attempts)),
    )
    if cause is Cause.UNKNOWN and start.executor == "slurm" and not commands.has_scontrol():
        reason = f"{decision.reason}: there is no scontrol in PATH on {os.uname().nodename}"
        decision = replace(decision, reason=reason)
    if decision.action is Action.REQUEUE and run.hold is not None and run.hold.is_moved:
        moved = f"{cause}, and the run's folder is {run.place} now, where its job does not look"
        return replace(decision, action=Action.ASK, reason=moved)
    if decision.action is Action.GIVE_UP and (
        fault := _last_fault(attempts) or last_error(run, start.job_id)
    ):
        return replace(decision, reason=f"{decision.reason}{LAST_FAULT}{fault}")
    return decision


def ask_slurm(
    start: JobStart, budget: LaunchConfig, signal_name: str | None, until: float | None = None
) -> tuple[Cause, bool]:
    """Why the job ends, and whether Slurm would requeue it."""
    if start.executor == "local":
        # Only the user or the demo signals a local job, with the same meaning as Slurm.
        return Cause.PREEMPTED if signal_name else Cause.CRASHED, True
    answer = _try_often(lambda wait_s: _facts(start, wait_s), until)
    facts, is_forgotten = answer or (None, False)
    if is_forgotten:
        return _cause_of_forgotten(start, signal_name), False
    cause = classify(facts, start.restart_count, signal_name, budget.signal_before_s)
    return cause, facts is None or facts.requeue_allowed


def _facts(start: JobStart, wait_s: float) -> tuple[JobFacts | None, bool]:
    """What Slurm says of the job, and whether it has forgotten it."""
    try:
        return scheduler().facts(start.job_id, timeout_s=wait_s), False
    except SlurmRejected as error:
        if _FORGOTTEN.search(error.what):
            return None, True
        raise


def _cause_of_forgotten(start: JobStart, signal_name: str | None) -> Cause:
    """Requeue after a controller lost its state; a run that the user cancelled stays away."""
    try:
        recorded = scheduler().accounted([start.job_id]).get(start.job_id)
    except MgptError:
        recorded = None
    if recorded is not None and recorded.state == "CANCELLED":
        return Cause.CANCELLED
    return Cause.SIGNALLED if signal_name else Cause.CRASHED


def limit_unrecorded(
    run: RunDir, start: JobStart, budget: LaunchConfig, decision: Decision
) -> Decision:
    """Cap requeues when the run's folder cannot record the decision, so that budgets cannot grow.

    What counts instead are the starts in a row that left none: the job's restarts without a ledger.
    """
    if decision.action is not Action.REQUEUE:
        return decision
    attempts = read_ledgers(run.ledger)
    alone = replace(start, succeeds=())
    recorded = {attempt.restart_count for attempt in attempts if alone.is_of_job(attempt)}
    unrecorded = start.restart_count - max(recorded, default=-1)
    if unrecorded < budget.max_stalled_attempts:
        return decision
    return replace(
        decision,
        action=Action.GIVE_UP,
        reason=f"{unrecorded} starts in a row could write nothing into {run.path} "
        f"(launch.max_stalled_attempts), the last: {decision.cause}",
    )


def _last_fault(attempts: Sequence[Attempt]) -> str:
    """The last fault helps the user more than the attempt count."""
    reasons = [str(fault.get("reason", "")) for attempt in attempts for fault in attempt.faults]
    return reasons[-1].split("\n")[0] if reasons else ""


def past(attempt: Attempt) -> PastAttempt:
    """What budgets need to know of a ledger's attempt."""
    saved = attempt.last_saved_step
    return PastAttempt(attempt.cause, saved is not None and saved > attempt.restored_step)


def apply_decision(
    run: RunDir,
    start: JobStart,
    decision: Decision,
    bad_nodes: Sequence[str] = (),
    *,
    until: float | None = None,
    in_rank: bool = False,
) -> Decision:
    """Requeue, submit a successor, or write down what the user has to do; run the event hooks.

    After a bad node the job is kept away from all that it found bad so far.

    Args:
        run: the run.
        start: the job's start.
        decision: what is to be done.
        bad_nodes: found unfit, where the ledger may not be able to say so.
        until: when this process is killed, seconds since the epoch; None if that is not known.
        in_rank: done by a rank, which leaves a successor to the batch script and its environment.

    Returns:
        the decision; where Slurm refuses the requeue that of a successor, or a request to the user.
    """
    decision = _act(run, start, decision, bad_nodes, until, in_rank=in_rank)
    run_hooks(run, start, hook_event(decision), decision.cause, decision.reason)
    return decision


def requeue_without_run_dir(run: RunDir, start: JobStart, trouble: str) -> Decision:
    """Bring a job back whose run folder cannot be read: Slurm alone says whether it may.

    Nothing in the folder is believed or executed, its settings neither.

    Args:
        run: the run.
        start: the job's start.
        trouble: why the folder cannot be read.
    """
    usual = LaunchConfig()
    cause, requeue_allowed = ask_slurm(start, usual, None, None)
    decision = decide(cause, PastAttempt(cause, True), [], usual, requeue_allowed=requeue_allowed)
    if decision.action is Action.RESUBMIT:
        decision = replace(decision, action=Action.ASK)  # its script lies in the folder
    if decision.action is Action.REQUEUE and start.restart_count >= _MOST_UNREAD:
        reason = f"restarted {start.restart_count} times, and nobody can read what came of it"
        decision = Decision(cause, Action.ASK, reason)
    decision = replace(decision, reason=f"{decision.reason} ({trouble})")
    return _act(run, start, decision, (), None)


def _act(
    run: RunDir,
    start: JobStart,
    decision: Decision,
    bad_nodes: Sequence[str],
    until: float | None,
    *,
    in_rank: bool = False,
) -> Decision:
    if decision.action is Action.REQUEUE and start.executor == "slurm":
        refusal, excluded = _requeue_elsewhere(run, start, decision, bad_nodes, until)
        decision = replace(decision, reason=f"{decision.reason}{excluded}")
        if refusal is not None:
            # Who refuses can be asked for another job; who is silent cannot.
            answered = isinstance(refusal, SlurmRejected)
            action = Action.RESUBMIT if answered else Action.ASK
            reason = f"{decision.reason}; but {refusal.what}"
            decision = replace(decision, action=action, reason=reason)
    if decision.action is Action.RESUBMIT:
        decision = (
            replace(decision, action=Action.DEFER)
            if in_rank
            else _resubmit(run, start, decision, bad_nodes)
        )
    if decision.action is Action.ASK:
        command = f"mgpt4 resume {shlex.quote(str(run.place))}"
        leave_behind(run.resubmit_needed, f"{decision.reason}\n\n{command}\n")
    if decision.action is Action.GIVE_UP:
        leave_behind(run.failed, decision.reason + "\n")
    return decision


def _resubmit(
    run: RunDir, start: JobStart, decision: Decision, bad_nodes: Sequence[str]
) -> Decision:
    """Submit the job's successor, or ask the user for one."""
    try:
        exclude: list[str] = []
        if nodes := _bad_nodes(run, start, bad_nodes):
            excluded = read_own_config(run.config_file, pauses_s=()).config.launch.exclude
            exclude = [*filter(None, [excluded]), *nodes]
        _, is_forgotten = _facts(start, commands.COMMAND_TIMEOUT_S)
        job_id = submit_successor(run, start, exclude, is_forgotten=is_forgotten)
    except (MgptError, OSError) as error:
        why = error.what if isinstance(error, MgptError) else str(error)
        reason = f"{decision.reason}; but no other job could be submitted: {why}"
        return replace(decision, action=Action.ASK, reason=reason)
    return replace(decision, reason=f"{decision.reason}; job {job_id} goes on with the run")


def _bad_nodes(run: RunDir, start: JobStart, further: Sequence[str]) -> list[str]:
    attempts = [attempt for attempt in read_ledgers(run.ledger) if start.is_of_job(attempt)]
    return list(dict.fromkeys([*nodes_found_bad(attempts), *further]))


def leave_behind(marker: Path, text: str) -> None:
    """Write a file for the supervisor and the user; a disk that refuses is reported in the log."""
    try:
        marker.write_text(text, encoding="utf-8")
    except OSError as error:  # a full disk: then the job's log is all there is
        print(f"{marker} could not be written ({error}); it would say: {text}", flush=True)


def exit_code(decision: Decision) -> int:
    """The trainer's exit code for an unfinished run: never 0, or a dependent job would start."""
    if decision.cause is Cause.BAD_NODE:
        return BadNode.exit_code
    return FatalTrainingError.exit_code if decision.action is Action.GIVE_UP else EXIT_RESUMABLE


def _requeue_elsewhere(
    run: RunDir,
    start: JobStart,
    decision: Decision,
    bad_nodes: Sequence[str],
    until: float | None,
) -> tuple[MgptError | None, str]:
    """Why there was no requeue (None if there was), and what was excluded."""
    # Slurm ends this very process after the requeue; the exclusion is possible only then.
    with commands.signals_held_back():
        refusal = requeue_job(start, until)
        if refusal is not None or decision.cause is not Cause.BAD_NODE:
            return refusal, ""
        nodes = _bad_nodes(run, start, bad_nodes)
        return None, f"; {exclude_nodes(start.job_id, nodes)}" if nodes else ""


def requeue_job(start: JobStart, until: float | None = None) -> MgptError | None:
    """Requeue a job: None on success, else why not. Where scontrol fails, its restarts decide."""
    refusal = None
    for pause_s, wait_s in _tries(until):
        try:
            scheduler().requeue(start.job_id, timeout_s=wait_s)
            return None
        except MgptError as error:
            refusal = error
            if _is_requeued(start, wait_s):
                return None
            if isinstance(error, SlurmRejected) and _FINAL.search(error.what):
                return refusal
            time.sleep(pause_s)
    return refusal


def _is_requeued(start: JobStart, wait_s: float) -> bool:
    try:
        return scheduler().facts(start.job_id, timeout_s=wait_s).restarts > start.restart_count
    except MgptError:
        return False


def _try_often(ask: Callable[[float], T], until: float | None) -> T | None:
    for pause_s, wait_s in _tries(until):
        try:
            return ask(wait_s)
        except MgptError:
            time.sleep(pause_s)
    return None


def _tries(until: float | None) -> Iterator[tuple[float, float]]:
    """Per try the pause after it and the patience with it, so that all are over by ``until``."""
    for number in range(_TRIES):
        wait_s = commands.COMMAND_TIMEOUT_S
        if until is not None:
            left_s = until - time.time()
            if number and left_s < _LEAST_WAIT_S:
                return
            # A third now: what follows a slow answer needs time as well.
            wait_s = min(wait_s, max(_LEAST_WAIT_S, left_s / 3))
        yield (_PAUSE_S * 2**number if number < _TRIES - 1 else 0.0), wait_s

"""The last supervisor: runs after srun, where perhaps no rank lived to decide.

A rank that was killed with -9, a node that vanished or a task that never started leaves the job
FAILED in spite of ``--requeue``. This reads what the ranks left in the run directory and, if
they decided nothing, decides.
"""

from __future__ import annotations

import argparse
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mgpt4_hpc.config.run_config_file import read_own_config
from mgpt4_hpc.errors import (
    EXIT_HUNG,
    EXIT_RESUMABLE,
    Displaced,
    FatalTrainingError,
    MgptError,
    StorageTrouble,
)
from mgpt4_hpc.identity import RUN_ID_VARIABLE
from mgpt4_hpc.launch.job.environment import start_of
from mgpt4_hpc.launch.job.event_hooks import FAILED, FINISHED, RESUBMIT_NEEDED, run_hooks
from mgpt4_hpc.launch.job.job_end import end_finished, end_unfinished
from mgpt4_hpc.launch.job.requeue import (
    EXIT_RESTART,
    apply_decision,
    exit_code,
    find_decision,
    limit_unrecorded,
    past,
    requeue_without_run_dir,
)
from mgpt4_hpc.launch.job.requeue_policy import Action, Decision, PastAttempt
from mgpt4_hpc.launch.job.successor import of_its_line
from mgpt4_hpc.launch.runs.cancel_request import is_cancelled
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.retry import retry_storage
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.causes import Cause
from mgpt4_hpc.telemetry.ledger import append_supervisor_note, read_ledgers

HUNG_CODES = frozenset({EXIT_HUNG, 128 + signal.SIGALRM, -signal.SIGALRM})
"""Exit codes of a watchdog's end, its own, srun's or Python's. srun returns the highest of all
ranks' codes, so that a hang may show in the ledger alone."""

_PAUSES_S = (1.0, 2.0, 4.0)
"""Short: this script may be killed in half a minute, and has to requeue the job before that."""


@dataclass(frozen=True)
class Verdict:
    """What the supervisor found.

    Attributes:
        exit_code: for the batch script.
        again: whether the run goes on.
        reason: the sentence for the log.
    """

    exit_code: int
    again: bool
    reason: str


def decide_after_exit_with_retry(run: RunDir, start: JobStart, code: int) -> Verdict:
    """Do :func:`decide_after_exit`, and retry where shared storage fails for a moment.

    Raises:
        MgptError: the run's settings are broken.
    """
    try:
        return retry_storage(lambda: decide_after_exit(run.held(), start, code), pauses_s=_PAUSES_S)
    except Displaced as error:
        end_unfinished(start)
        return Verdict(code, False, error.what)  # the run that is there is another job's to judge
    except (OSError, StorageTrouble) as error:
        trouble = error.what if isinstance(error, MgptError) else str(error)
        if code in (0, FatalTrainingError.exit_code):
            # Of an unfinished run no rank ends with 0, and 70 never changes by itself.
            return Verdict(code, False, f"the run's folder cannot be read: {trouble}")
        if run.is_gone():
            return Verdict(EXIT_RESUMABLE, False, f"{run.path} was removed or moved: it stays away")
        decision = requeue_without_run_dir(run, start, trouble)
        return Verdict(exit_code(decision), decision.goes_on, decision.reason)


def decide_after_exit(run: RunDir, start: JobStart, code: int) -> Verdict:
    """Judge a job start whose tasks have all ended.

    May be done twice: what the first has requeued, the second leaves alone.

    Args:
        run: the run.
        start: which job, which restart.
        code: srun's exit code, or the worst of the local tasks'.
    """
    attempt = next((a for a in reversed(read_ledgers(run.ledger)) if start.is_of(a)), None)
    if attempt is not None and attempt.cause == Cause.FINISHED:
        run_hooks(run, start, FINISHED, Cause.FINISHED, "all steps are done")
        return Verdict(0, False, "finished")
    if attempt is not None and (newer := run.overtaken_by(attempt.number)) is not None:
        # Requeued, the two would take the run from each other for ever.
        return Verdict(FatalTrainingError.exit_code, False, f"overtaken by attempt {newer}")
    if run.failed.exists():
        reason = run.failed.read_text().strip()
        if attempt is not None and not attempt.ended:
            # A rank that gives up before training leaves the reason, and no line of its end.
            _note(run, start, attempt, code, Decision(Cause.FATAL, Action.GIVE_UP, reason))
            attempt = replace(attempt, cause=Cause.FATAL)
        run_hooks(run, start, FAILED, attempt.cause if attempt is not None else Cause.FATAL, reason)
        return Verdict(FatalTrainingError.exit_code, False, reason)
    if run.resubmit_needed.exists():
        reason = run.resubmit_needed.read_text().strip()
        run_hooks(run, start, RESUBMIT_NEEDED, attempt.cause if attempt else Cause.UNKNOWN, reason)
        return Verdict(EXIT_RESUMABLE, False, reason)
    if (
        attempt is not None
        and attempt.ended
        and (attempt.requeue is not None or code == EXIT_RESTART)
    ):
        accepted = attempt.requeue is None or bool(attempt.requeue.get("accepted"))
        return Verdict(
            attempt.exit_code or EXIT_RESUMABLE, accepted, f"rank 0 decided: {attempt.cause}"
        )
    return _decide(run, start, attempt, code)


def _decide(run: RunDir, start: JobStart, attempt: Attempt | None, code: int) -> Verdict:
    """No rank decided, or none lived to carry its decision out."""
    this = PastAttempt(Cause.UNKNOWN, False)
    if attempt is not None:
        this = past(attempt) if attempt.ended else replace(past(attempt), cause=Cause.UNKNOWN)
    if code in HUNG_CODES or (attempt is not None and attempt.hangs and not attempt.ended):
        this = replace(this, cause=Cause.HUNG)
    signal_name = None
    if attempt is not None and attempt.signals and not attempt.faults:
        # After a fault it came from srun, which ends the others when one rank dies.
        signal_name = attempt.signals[0]
    if attempt is None and code == EXIT_RESUMABLE:
        signal_name = "a stop signal"  # the ranks left before they had met
    budget = read_own_config(run.config_file, pauses_s=_PAUSES_S).config.launch
    decision = find_decision(run, start, budget, signal_name, this)
    if not _note(run, start, attempt, code, decision):
        decision = limit_unrecorded(run, start, budget, decision)
    decision = apply_decision(run, start, decision)
    return Verdict(exit_code(decision), decision.goes_on, decision.reason)


def _note(
    run: RunDir, start: JobStart, attempt: Attempt | None, code: int, decision: Decision
) -> bool:
    """Write down what we found, also for the budgets of later attempts; whether it could be."""
    try:
        number = (
            attempt.number
            if attempt
            else run.claim_attempt({"by": "supervisor", "job_id": start.job_id})
        )
        append_supervisor_note(
            run.ledger,
            number,
            cause=decision.cause,
            exit_code=code,
            reason=decision.reason,
            job_id=start.job_id,
            cluster=start.cluster,
            restart_count=start.restart_count,
        )
    except OSError as error:
        # Before the requeue, but a full disk must not prevent it.
        print(f"supervisor: the ledger cannot be written: {error}", flush=True)
        return False
    return True


def decide_after_exit_local(
    run_dir: Path, job_id: str, restarts: int, codes: Sequence[int]
) -> Verdict:
    """Judge for the local controller: whether to start the tasks again, and the exit code if not.

    Args:
        run_dir: the run.
        job_id: the controller's process.
        restarts: starts before this one.
        codes: of the tasks; at least one is not 0.
    """
    telling = [*(c for c in codes if c == EXIT_RESTART), *(c for c in codes if c in HUNG_CODES)]
    worst = telling[0] if telling else max(codes, key=abs)
    run = RunDir(run_dir, os.environ.get(RUN_ID_VARIABLE, ""))
    return decide_after_exit_with_retry(run, JobStart("local", job_id, restarts), worst)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry of the batch script's last line; returns its exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--exit-code", type=int, required=True, help="what srun ended with")
    arguments = parser.parse_args(argv)
    run = RunDir(arguments.run_dir, os.environ.get(RUN_ID_VARIABLE, ""))
    start = of_its_line(run, start_of(os.environ))
    try:
        verdict = decide_after_exit_with_retry(run, start, arguments.exit_code)
    except MgptError as error:
        print(f"supervisor: srun ended with {arguments.exit_code}; error: {error}", flush=True)
        return EXIT_RESUMABLE
    print(f"supervisor: srun ended with {arguments.exit_code}; {verdict.reason}", flush=True)
    if verdict.exit_code == 0:
        end_finished(start, run.path.parent)
    elif verdict.exit_code == FatalTrainingError.exit_code or is_cancelled(run, start):
        end_unfinished(start)
    return verdict.exit_code

"""The end of an attempt on nodes that were judged unfit: record, requeue, exclude."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from mgpt4_hpc.config.schema import LaunchConfig
from mgpt4_hpc.launch.job.requeue import apply_decision, exit_code, find_decision, limit_unrecorded
from mgpt4_hpc.launch.job.requeue_policy import Action, Decision, PastAttempt
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.bad_nodes import BAD_NODE
from mgpt4_hpc.telemetry.causes import Cause
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mgpt4_hpc.errors import BadNode


def settle_bad_node(
    run: RunDir,
    start: JobStart,
    budget: LaunchConfig,
    error: BadNode,
    claim: Mapping[str, object],
    started_at: float,
) -> Decision:
    """Write down which nodes are unfit, and bring the job back without them.

    Done by rank 0 while the others wait. A folder that it cannot write keeps no record, but does
    not keep the job from coming back elsewhere, for launch.max_stalled_attempts starts.

    Args:
        run: the run.
        start: the job's start.
        budget: the run's limits.
        error: the verdict.
        claim: who runs this attempt, as in every ledger's first line.
        started_at: unix time of the process's start.
    """
    ledger = _open_ledger(run, claim)
    if ledger is not None:
        ledger.event(
            Kind.START,
            attempt=ledger.attempt,
            hostname=os.uname().nodename,
            started_at=started_at,
            **claim,
        )
        for node, reason in error.nodes.items():
            ledger.event(Kind.FAULT, what=BAD_NODE, node=node, reason=reason)
    this = PastAttempt(Cause.BAD_NODE, False)
    decision = find_decision(run, start, budget, None, this, in_rank=True)
    if ledger is None:
        decision = limit_unrecorded(run, start, budget, decision)
    decision = replace(decision, reason=f"{decision.reason} ({error.what})")
    if ledger is not None:
        ledger.event(Kind.END, cause=decision.cause, step=0, exit_code=exit_code(decision))
    decision = apply_decision(run, start, decision, list(error.nodes), in_rank=True)
    if ledger is not None and decision.action is not Action.DEFER:
        accepted = decision.action is Action.REQUEUE
        ledger.event(Kind.REQUEUE, accepted=accepted, reason=decision.reason)
    if ledger is not None:
        ledger.close()
    print(f"{time.strftime('%H:%M:%S')} {decision.reason}", flush=True)
    return decision


def _open_ledger(run: RunDir, claim: Mapping[str, object]) -> Ledger | None:
    try:
        number = run.claim_attempt(dict(claim))
        run.clear_markers()
    except OSError as trouble:
        print(f"the attempt cannot be recorded in {run.path}: {trouble}", flush=True)
        return None
    return Ledger(run.ledger, number, run_id=run.run_id)

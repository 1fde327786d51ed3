"""What runs in each task of a job: one rank, from its first instruction to its exit code."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from mgpt4_hpc.config.run_config_file import read_config, read_own_config
from mgpt4_hpc.errors import EXIT_RESUMABLE, BadNode, FatalTrainingError, MgptError, Overtaken
from mgpt4_hpc.identity import RUN_ID_VARIABLE
from mgpt4_hpc.launch.job.deadline import DeadlineStop, patience_until
from mgpt4_hpc.launch.job.environment import JobEnvironment, read_job_environment
from mgpt4_hpc.launch.job.event_hooks import FINISHED, run_hooks
from mgpt4_hpc.launch.job.requeue import (
    EXIT_RESTART,
    apply_decision,
    exit_code,
    find_decision,
    leave_behind,
)
from mgpt4_hpc.launch.job.requeue_policy import Action, PastAttempt
from mgpt4_hpc.launch.job.successor import of_its_line
from mgpt4_hpc.launch.runs.cancel_request import is_cancelled
from mgpt4_hpc.launch.runs.job_ref import read_note
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.parent_death import die_with
from mgpt4_hpc.retry import retry_storage
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.causes import Cause
from mgpt4_hpc.train.lossy_stdout import tolerate_lost_output
from mgpt4_hpc.train.stopping.stop import (
    STOP_SIGNALS,
    Interrupted,
    SignalStop,
    StopSource,
    log_signals,
    stop_signals,
)

if TYPE_CHECKING:
    from torch.distributed import TCPStore

    from mgpt4_hpc.config.schema import LaunchConfig, RunConfig
    from mgpt4_hpc.train.health.node_consensus import NodeConsensus
    from mgpt4_hpc.train.recorder import Recorder
    from mgpt4_hpc.train.state import Outcome


def run_task(run_dir: str) -> int:
    """Run this rank; the value 0 means that the run is finished, all else leaves by exit."""
    started_at = time.time()
    tolerate_lost_output()
    run = RunDir(Path(run_dir), os.environ.get(RUN_ID_VARIABLE, ""))
    stop = SignalStop(_stop_signals(run))
    log_signals(stop.signals, lambda line: print(line, flush=True))
    stop.install()
    _die_with_controller(os.environ)
    code = run_rank(run, stop, started_at)
    if code:
        _leave(code)
    return code


def _die_with_controller(environ: Mapping[str, str]) -> None:
    """End a local rank with its controller: no other process would end or restart it."""
    if environ.get("SUBMITIT_EXECUTOR") != "local":
        return
    controller = int(environ["SUBMITIT_LOCAL_JOB_ID"])
    if os.getppid() in (controller, 1):  # in a container it is not our parent
        die_with(controller)


def _stop_signals(run: RunDir) -> tuple[signal.Signals, ...]:
    """The run's own, or the usual ones if its settings cannot be read: that is reported later."""
    try:
        names = read_config(run.config_file).config.launch.stop_signals
    except (MgptError, OSError):
        return STOP_SIGNALS
    return stop_signals(names)


def run_rank(run: RunDir, stop: SignalStop, started_at: float) -> int:
    """Train as one rank of a job.

    Returns:
        0 finished; 75 stopped and resumable; 70 will fail again; 71 this node is at fault;
        144 for submitit's local executor, which starts the job again on it; 1 a crash.
    """
    try:
        job = read_job_environment()
        here = run  # by its path
        run = retry_storage(here.held, vanished=lambda: not here.identity_file.exists())
        return _train(run, job, stop, started_at)
    except Overtaken as error:
        # A newer attempt owns the run now. It is not failed, and not ours to requeue.
        print(f"error: {error}", flush=True)
        return FatalTrainingError.exit_code
    except MgptError as error:
        print(f"error: {error}", flush=True)
        if not error.will_repeat:
            return error.exit_code
        # Read by the batch script: srun's own exit code may be that of a rank it killed.
        leave_behind(run.failed, f"{error}\n")
        return FatalTrainingError.exit_code
    except Exception:  # noqa: BLE001 - the last stop: a peer that died looks like this
        traceback.print_exc()
        sys.stderr.flush()
        print(
            "=== this rank failed; if it lost a connection, another one died first: its log, or "
            "srun's lines in rank 0's, tell which ===",
            flush=True,
        )
        return 1


def _train(run: RunDir, job: JobEnvironment, stop: SignalStop, started_at: float) -> int:
    from mgpt4_hpc import distributed
    from mgpt4_hpc.launch.job.bad_node import settle_bad_node
    from mgpt4_hpc.launch.job.node_loss import explain_last_end
    from mgpt4_hpc.train.device import choose_device
    from mgpt4_hpc.train.run import run_training
    from mgpt4_hpc.train.state import Ending

    config = read_own_config(run.config_file).config
    start = of_its_line(
        run, JobStart(job.executor, job.job_id, job.restart_count, cluster=job.cluster)
    )
    try:
        # Nothing has begun yet: a rank that gets a signal leaves, and the supervisor decides.
        with stop.interrupting():
            store, consensus, error = _meet(run, config, job)
    except Interrupted:
        print("=== a stop signal came before the ranks had met ===", flush=True)
        return EXIT_RESUMABLE
    if isinstance(error, BadNode):
        bad, claim = error, _claim(run, job)
        consensus.first_does(
            lambda: settle_bad_node(run, start, config.launch, bad, claim, started_at)
        )
    if error is not None:
        raise error
    distributed.start_group(
        job.ranks,
        choose_device(config, job.ranks),
        store,
        timeout_s=distributed.collective_timeout_s(config.train.hang_timeout_s),
    )
    if job.ranks.is_first and is_cancelled(run, start):
        stop.request("cancelled")  # it was back in the queue before the mark was seen
    if job.ranks.is_first:
        explain_last_end(run, start)
    source: StopSource = stop
    if job.executor == "slurm" and job.ranks.is_first:
        source = DeadlineStop(stop, start, config.launch.signal_before_s)
    # The other ranks' codes do not matter: they leave after rank 0.
    code = EXIT_RESUMABLE

    def end(outcome: Outcome, recorder: Recorder) -> None:
        """Record how the attempt ended and act on it; sets this rank's exit code."""
        nonlocal code
        code = _settle(run, start, config.launch, source, outcome, recorder)

    outcome = run_training(
        run, job.ranks, source, claim=_claim(run, job), started_at=started_at, end=end
    )
    distributed.end_group()
    return 0 if outcome.ending is Ending.FINISHED else code


def _meet(
    run: RunDir, config: RunConfig, job: JobEnvironment
) -> tuple[TCPStore | None, NodeConsensus, MgptError | None]:
    """The store of all ranks, their council, and what they found wrong with their nodes."""
    from mgpt4_hpc import distributed
    from mgpt4_hpc.train.health.node_check import check_node
    from mgpt4_hpc.train.health.node_consensus import NodeConsensus

    store = (
        distributed.rendezvous(job.ranks, job.master_host, job.token(run.run_id))
        if job.ranks.world_size > 1
        else None
    )
    consensus = NodeConsensus(store, job.ranks, job.node)
    error = consensus.verdict(
        lambda: check_node(config, job.ranks, run.path, job.node, gpu_allotted=job.gpu_allotted)
    )
    return store, consensus, error


def _claim(run: RunDir, job: JobEnvironment) -> dict[str, object]:
    # Of a run made by hand with sbatch the queue's wait is not known.
    return {**job.claim, "nodes": [job.nodes], "submitted_at": read_note(run).get("submitted")}


def _settle(
    run: RunDir,
    start: JobStart,
    budget: LaunchConfig,
    stop: StopSource,
    outcome: Outcome,
    recorder: Recorder,
) -> int:
    """Decide what follows; rank 0's exit code.

    The settings are those read at the start: this is grace time, and storage may not answer.

    Raises:
        Overtaken: a newer attempt owns the run, so that there is nothing to decide.
    """
    from mgpt4_hpc.telemetry.event_kinds import Kind
    from mgpt4_hpc.train.state import Ending

    if outcome.ending is Ending.FINISHED:
        _record_finished(run, start, outcome, recorder)
        return 0
    run.assert_newest(outcome.attempt)
    request = stop.poll()
    recorder.event(
        Kind.STOP_REQUESTED,
        step=outcome.step,
        reason=outcome.reason,
        deadline=None if request is None else request.deadline,
    )
    until = patience_until(request, time.time())
    progressed = (outcome.durable_step or 0) > outcome.restored_step
    signal_name = request.reason if request is not None else outcome.reason
    decision = find_decision(
        run,
        start,
        budget,
        signal_name,
        PastAttempt(Cause.UNKNOWN, progressed),
        until=until,
        in_rank=True,
    )
    # On disk before the requeue, which begins to kill this job.
    recorder.event(Kind.END, cause=decision.cause, step=outcome.step, exit_code=exit_code(decision))
    recorder.say(f"stopping: {decision.reason}")
    if decision.action is Action.DEFER:
        return exit_code(decision)
    decision = apply_decision(run, start, decision, until=until, in_rank=True)
    if decision.action is Action.DEFER:
        return exit_code(decision)
    recorder.event(Kind.REQUEUE, accepted=decision.action is Action.REQUEUE, reason=decision.reason)
    if decision.action is Action.REQUEUE and start.executor == "local":
        return EXIT_RESTART
    return exit_code(decision)


def _record_finished(run: RunDir, start: JobStart, outcome: Outcome, recorder: Recorder) -> None:
    """Record the run's end in the ledger, and run the user's hook for it."""
    from mgpt4_hpc.telemetry.event_kinds import Kind

    recorder.event(
        Kind.END, cause=Cause.FINISHED, step=outcome.step, exit_code=0, **outcome.finished_at
    )
    reason = outcome.reason or f"all {outcome.step} steps are done"
    run_hooks(run, start, FINISHED, Cause.FINISHED, reason)


def _leave(code: int) -> None:
    """Exit at once: a finalizer that waits for a dead peer must not hold the job."""
    print(f"{time.strftime('%H:%M:%S')} === this rank ends with code {code} ===", flush=True)
    sys.stderr.flush()
    os._exit(code)

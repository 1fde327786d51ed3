"""Every run's state and progress at a glance: one call to each Slurm tool for all of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from mgpt4_hpc.errors import MgptError, SlurmUnreachable
from mgpt4_hpc.launch.runs import processes
from mgpt4_hpc.launch.runs.run_facts import RunFacts, read_facts, run_it_follows
from mgpt4_hpc.launch.runs.run_state import AnswerSource, JobAnswer, RunState, describe_run, failure
from mgpt4_hpc.launch.slurm import queue
from mgpt4_hpc.launch.slurm.queue import QueuedJob
from mgpt4_hpc.launch.slurm.scheduler import other_cluster, scheduler
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.goodput import goodput

_READERS = 8
"""Threads: on NFS and Lustre a run costs a dozen round trips, not computation."""

_MAY_BE_BACK = frozenset({"PREEMPTED", "REQUEUED", "NODE_FAIL"})


@dataclass(frozen=True)
class RunOverview:
    """One row of ``mgpt4 status``; what is not known is None.

    Attributes:
        name, path, stage: of the run.
        state: one word of :class:`RunState`.
        text: the state as a sentence.
        source: who said so: squeue, sacct, process, run folder.
        as_of: unix time up to which that is certain, where squeue does not answer; None is now.
        executor, job_id: of its newest job.
        cluster: where that job is, if that is another Slurm cluster than this one.
        attempt: number of the newest attempt.
        step, max_steps, percent: progress.
        loss, samples_per_s: newest ones reported.
        eta_s: seconds to the last step at that rate, while it runs.
        goodput: share of the time holding nodes that went into new steps, 0 to 1.
        nodes: where it runs, or ran last.
        checkpoint_step, checkpoint_age_s: newest checkpoint.
        best_step, best_value: of the best validation (``best_validation``).
        details: of a failed run, lines that say more than ``text``.
    """

    name: str
    path: str
    stage: int
    state: RunState
    text: str
    source: AnswerSource
    as_of: float | None
    executor: str | None
    job_id: str | None
    cluster: str | None
    attempt: int | None
    step: int
    max_steps: int | None
    percent: float | None
    loss: float | None
    samples_per_s: float | None
    eta_s: float | None
    goodput: float | None
    nodes: str
    checkpoint_step: int | None
    checkpoint_age_s: float | None
    best_step: int | None
    best_value: float | None
    details: tuple[str, ...]

    @property
    def there(self) -> str:
        """Where commands about its job are to be given, to be put behind them."""
        return f" (on a login node of {self.cluster})" if self.cluster else ""


@dataclass(frozen=True)
class Overviews:
    """The rows, and what could not be asked.

    Attributes:
        rows: in the order of the runs given.
        warnings: sentences about tools that did not answer.
        unreachable: set if a run's state hangs on a Slurm that does not answer.
        only_elsewhere: whether that is another cluster's Slurm each time, not this one's.
    """

    rows: list[RunOverview]
    warnings: list[str]
    unreachable: SlurmUnreachable | None = None
    only_elsewhere: bool = False


def look_at(runs: Sequence[RunDir]) -> Overviews:
    """The state and progress of each run."""
    now = time.time()
    with ThreadPoolExecutor(_READERS) as pool:
        all_facts = list(pool.map(read_facts, runs))
    answers = _ask_clusters(all_facts)
    rows = [
        _row(facts, _with_waited_for(facts, _answer(facts, answers)), now) for facts in all_facts
    ]
    unknown = sorted(row.cluster or "" for row in rows if row.state is RunState.UNKNOWN)
    errors = {name: error for name in unknown if (error := answers[name].error) is not None}
    warnings = [warning for asked in answers.values() for warning in asked.warnings]
    return Overviews(rows, warnings, next(iter(errors.values()), None), "" not in errors)


def look_at_one(run: RunDir) -> RunOverview:
    """The same for one run."""
    return look_at([run]).rows[0]


@dataclass
class _SlurmAnswers:
    squeue: dict[str, QueuedJob]
    sacct: dict[str, QueuedJob]
    squeue_answered: bool
    warnings: list[str]
    error: SlurmUnreachable | None = None


def _ask_clusters(all_facts: Sequence[RunFacts]) -> dict[str, _SlurmAnswers]:
    """The answers of each cluster that has a job of these runs; that of this one is named ""."""
    groups: dict[str, list[RunFacts]] = {"": []}
    for facts in all_facts:
        groups.setdefault(_cluster(facts), []).append(facts)
    return {name: _ask_slurm(group, name) for name, group in groups.items()}


def _cluster(facts: RunFacts) -> str:
    return other_cluster(facts.job.cluster) if facts.job is not None else ""


def _ask_slurm(all_facts: Sequence[RunFacts], cluster: str) -> _SlurmAnswers:
    # A finished run needs no scheduler, and most runs of an old folder are finished.
    ids = {
        facts.job.job_id
        for facts in all_facts
        if facts.job is not None and facts.job.executor == "slurm" and not facts.finished
    }
    answers = _SlurmAnswers({}, {}, True, [])
    if not ids:
        return answers
    found, answers.squeue_answered = _ask(scheduler().queued, ids, answers, cluster)
    answers.squeue = found
    # squeue does not show whether Slurm or the user cancelled a job that waited.
    told = {job_id for job_id, job in found.items() if not _ended_waiting(job)}
    if untold := ids - told:
        answers.sacct, _ = _ask(scheduler().accounted, untold, answers, cluster)
    return answers


def _ended_waiting(job: QueuedJob) -> bool:
    return job.state == "CANCELLED" and job.reason.startswith("Dependency")


def _ask(
    ask: Callable[[set[str], str], dict[str, QueuedJob]],
    ids: set[str],
    answers: _SlurmAnswers,
    cluster: str,
) -> tuple[dict[str, QueuedJob], bool]:
    try:
        return ask(ids, cluster), True
    except MgptError as error:
        # Many sites have no accounting; while squeue answers that needs no warning.
        if ask == scheduler().queued or not answers.squeue_answered:
            answers.warnings.append(error.what)
        if answers.error is None:
            answers.error = _as_unreachable(error, ask == scheduler().queued)
            if cluster and answers.error is not None:
                answers.error = _not_from_here(cluster, answers.error)
        return {}, False


def _not_from_here(cluster: str, error: SlurmUnreachable) -> SlurmUnreachable:
    return SlurmUnreachable(
        f"the job is on the cluster {cluster}, which cannot be asked from "
        f"{scheduler().cluster_name()}",
        why=f"{error.what}; a job of the same number here would be another's",
        fix=f"give the same command on a login node of {cluster}; if that cluster is no more, "
        "remove slurm/job.json from the run's folder",
    )


def _as_unreachable(error: MgptError, queue_failed: bool) -> SlurmUnreachable | None:
    if isinstance(error, SlurmUnreachable):
        return error
    # A squeue that crashes or refuses leaves us as blind as one that reaches no controller; a
    # site without accounting is no fault.
    return SlurmUnreachable(error.what, why=error.why, fix=error.fix) if queue_failed else None


def _answer(facts: RunFacts, answers: Mapping[str, _SlurmAnswers]) -> JobAnswer:
    job = facts.job
    if job is None:
        return JobAnswer()
    if job.executor == "slurm":
        told = answers[_cluster(facts)]
        recorded, queued = told.sacct.get(job.job_id), told.squeue.get(job.job_id)
        # A stranger's job may have the number now.
        recorded = recorded if recorded is not None and job.is_job(recorded) else None
        if queued is not None and job.is_job(queued):
            by = recorded.cancelled_by if recorded is not None else ""
            return JobAnswer(replace(queued, cancelled_by=by), AnswerSource.SQUEUE)
        # Accounting lags, and keeps jobs as running whose end it missed; and what it shows as
        # preempted may be back in the queue. Only squeue knows.
        doubtful = recorded is not None and (
            recorded.is_active if told.squeue_answered else recorded.state in _MAY_BE_BACK
        )
        if recorded is not None and not doubtful:
            return JobAnswer(recorded, AnswerSource.SACCT)
        return JobAnswer(asked=told.squeue_answered)
    if not processes.is_here(job.hostname):
        return JobAnswer()
    if job.executor == "local":
        return JobAnswer(alive=processes.is_controller(facts.run, job.job_id))
    beat = facts.beat
    if beat is not None and beat.pid and processes.is_here(beat.hostname):
        return JobAnswer(alive=processes.exists(beat.pid))
    return JobAnswer()


def _with_waited_for(facts: RunFacts, answer: JobAnswer) -> JobAnswer:
    """Add which run the job waits for, or waited for if Slurm will not start it."""
    if answer.job is None or answer.job.reason not in (queue.DEPENDENCY, queue.NEVER_SATISFIED):
        return answer
    first = run_it_follows(facts.run)
    if first is None:
        return answer
    return replace(answer, waited_for=first, waited_for_finished=read_facts(first).finished)


def _row(facts: RunFacts, answer: JobAnswer, now: float) -> RunOverview:
    status = describe_run(facts, answer, now)
    last, step, rate = facts.last, facts.step, facts.samples_per_s
    left = facts.max_steps - step if facts.max_steps is not None else None
    eta_s = None
    if status.state is RunState.RUNNING and left is not None and rate and facts.global_batch_size:
        eta_s = max(0, left) * facts.global_batch_size / rate
    nodes = answer.job.nodes if answer.job is not None else ""
    cluster = _cluster(facts) or None
    return RunOverview(
        name=facts.run.name,
        path=str(facts.run.path),
        stage=facts.stage,
        state=status.state,
        text=f"{status.text} (on the cluster {cluster})" if cluster else status.text,
        source=status.source,
        as_of=status.as_of,
        executor=facts.job.executor if facts.job else None,
        job_id=facts.job.job_id if facts.job else None,
        cluster=cluster,
        attempt=last.number if last else None,
        step=step,
        max_steps=facts.max_steps,
        percent=100 * step / facts.max_steps if facts.max_steps else None,
        loss=facts.loss,
        samples_per_s=rate,
        eta_s=eta_s,
        goodput=goodput(facts.attempts).without_queue if facts.attempts else None,
        nodes=nodes or (",".join(last.nodes) if last else ""),
        checkpoint_step=facts.checkpoint_step,
        checkpoint_age_s=now - facts.checkpoint_at if facts.checkpoint_at is not None else None,
        best_step=facts.best_step,
        best_value=facts.best_value,
        details=failure(facts)[1] if status.state is RunState.FAILED else (),
    )

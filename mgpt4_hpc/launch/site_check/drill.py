"""The proof that a site works: a short run is preempted, comes back, and ends with the same bits.

One run is started and its nodes are taken away. The same run is made once more without a
disturbance: under Slurm as the second of a chain, so that it must begin when the first has ended.
Both must end alike to the last bit, no step may be lost, and neither may start once more.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.formatting import duration
from mgpt4_hpc.launch.manage.cancel import cancel_run
from mgpt4_hpc.launch.runs.status import look_at_one
from mgpt4_hpc.launch.site_check.bit_identity import bit_differences
from mgpt4_hpc.launch.site_check.node_findings import node_findings
from mgpt4_hpc.launch.site_check.preemptor import Preemptor, choose_preemptor
from mgpt4_hpc.launch.site_check.run_watcher import DrillFailed, Watch
from mgpt4_hpc.launch.site_check.trial_run import (
    Reporter,
    plan_one,
    preempt_local,
    start,
    stop_local,
)
from mgpt4_hpc.launch.slurm.commands import cancel, job_facts, requeue
from mgpt4_hpc.launch.slurm.queue import ask_squeue
from mgpt4_hpc.launch.submit.plan import PlannedRun, SubmitRequest
from mgpt4_hpc.launch.submit.submit_run import SubmittedRun, choose_executor, uninterrupted
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.causes import Cause

PRESET = "toy-stage1"
STEPS = {"cpu": 300, "auto": 3000, "cuda": 3000}
"""Some twenty seconds of steps: long enough to be hit in the middle."""
INTERRUPT_AT = 0.25
"""Part of the run after which its nodes are taken."""
_BATCH = 16
"""Samples of a step, or as many below it as the ranks can share evenly."""
_PREEMPTION_PATIENCE_S = 120.0
"""A scheduler that has not preempted after this time will hardly do so before the run is over."""
_TOO_LATE = 0.8
_JOB_END_PATIENCE_S = 90.0
_POLL_S = 0.5


@dataclass(frozen=True)
class DrillOrder:
    """What the user asks for.

    Attributes:
        runs_dir: where the two runs are made.
        partition, account, qos: as for ``mgpt4 submit``.
        gpus: ranks of each run.
        nodes: over which they are spread.
        device: "cpu" asks for no GPU; "auto" takes them.
        by: "auto", "preemption" or "requeue".
        steps: of each run; None for a number that suits the device.
        time_min: time limit of each job.
        patience_s: longest wait for each thing.
        site, sbatch, assignments: as for ``mgpt4 submit``.
        executor: "auto", "slurm" or "local".
        keep: leave the runs behind also if all went well.
    """

    runs_dir: Path
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    gpus: int = 1
    nodes: int = 1
    device: str = "auto"
    by: str = "auto"
    steps: int | None = None
    time_min: int = 15
    patience_s: float = 900.0
    site: str | None = None
    sbatch: tuple[str, ...] = ()
    assignments: tuple[str, ...] = ()
    executor: str = "auto"
    keep: bool = False


@dataclass(frozen=True)
class DrillResult:
    """What happened.

    Attributes:
        executor: "slurm" or "local".
        how: what was done to the run.
        causes: why each of its attempts ended.
        stopped_at: step at which the disturbed attempt ended.
        resumed_from: step at which the next began.
        steps: of the whole run.
        stop_s: seconds from asking for the nodes to the end of the attempt.
        wait_s: seconds from there to the start of the next one.
        start_s: seconds from there to its first step.
        follow_s: seconds from the first run's end to the start of the second, which waited for it;
            None without Slurm.
        seconds: of the whole drill.
        faults: promises that did not hold; none is a green drill.
        notes: what else is worth knowing.
        runs: directories of the disturbed and the undisturbed run.
    """

    executor: str
    how: str
    causes: list[str]
    stopped_at: int
    resumed_from: int
    steps: int
    stop_s: float
    wait_s: float
    start_s: float
    follow_s: float | None
    seconds: float
    faults: list[str]
    notes: list[str] = field(default_factory=list)
    runs: tuple[str, str] = ("", "")


def run_drill(request: DrillOrder, reporter: Reporter) -> DrillResult:
    """Carry out a drill. Its jobs are ended whatever happens, an interrupt included.

    Raises:
        DrillFailed: the site did not do what a run needs.
        MgptError: the runs could not be submitted.
    """
    drill = _Drill(request, reporter)
    with drill.leaving_nothing_behind():
        result = drill.perform()
        drill.keep |= bool(result.faults)
        return result


class _Drill:
    def __init__(self, request: DrillOrder, reporter: Reporter) -> None:
        self.request = request
        self.reporter = reporter
        self.executor = choose_executor(request.executor)
        self.keep = request.keep
        self.steps = request.steps or STEPS[request.device]
        self.jobs: list[SubmittedRun] = []
        self.helpers: list[str] = []
        self._name = f"drill-{time.strftime('%d%H%M%S')}-{os.getpid()}"

    def perform(self) -> DrillResult:
        """Run both jobs, interrupt one and compare them. Raises DrillFailed with the reason."""
        began = time.monotonic()
        disturbed = plan_one(self._request("disturbed"), os.environ)
        for note in disturbed.resolved.notes:
            self.reporter.say(note)
        preemptor = self._choose_preemptor(disturbed)
        job = self._start(disturbed)
        if self.executor == "slurm":
            self._start_alone(f"afterok:{job.job_id}")
        watch = Watch(job.run, self.reporter, self.request.patience_s)
        self.reporter.begin(f"{job.run.name}, job {job.job_id}", self.steps)
        interrupt_at = int(INTERRUPT_AT * self.steps)
        watch.until(
            f"did not reach step {interrupt_at}",
            lambda seen: bool(seen) and seen[-1].last_step >= interrupt_at,
        )
        before = len(watch.attempts)
        asked_at = time.time()
        how = self._preempt_run(job, watch, preemptor, before)
        halted = watch.until(
            "was not stopped", lambda seen: len(seen) > before or seen[before - 1].ended
        )[before - 1]
        self.reporter.say(f"attempt {halted.number} was {halted.cause} at step {halted.last_step}")
        if self.executor != "slurm":
            self._start_alone(None)
        watch.until(
            "did not come back",
            lambda seen: len(seen) > before and seen[before].first_step is not None,
        )
        attempts = watch.until("did not finish", _is_finished)
        again = attempts[before]
        self.reporter.say(f"attempt {again.number} went on from step {again.restored_step}")
        alone = self.jobs[-1]
        undisturbed = self._watch_alone(alone)

        notes = [
            f"{run.name} was stopped {more} times more than the drill asked for"
            for run, more in ((job.run, len(attempts) - 2), (alone.run, len(undisturbed) - 1))
            if more > 0
        ]
        return DrillResult(
            executor=self.executor,
            how=how,
            causes=[attempt.cause for attempt in attempts],
            stopped_at=halted.last_step,
            resumed_from=again.restored_step,
            steps=self.steps,
            stop_s=max(0.0, halted.end - asked_at),
            wait_s=max(0.0, again.start - halted.end),
            start_s=max(0.0, (again.first_step_at or again.end) - again.start),
            follow_s=None if self.executor != "slurm" else undisturbed[0].start - attempts[-1].end,
            seconds=time.monotonic() - began,
            faults=[
                *_faults(job.run, alone.run, halted, again, attempts + undisturbed),
                *self._started_again(job, attempts[-1]),
            ],
            notes=notes,
            runs=(str(job.run.path), str(alone.run.path)),
        )

    def _choose_preemptor(self, disturbed: PlannedRun) -> Preemptor | None:
        """How its nodes will be taken; None without Slurm."""
        preemptor = None
        launch = disturbed.resolved.config.launch
        if self.executor == "slurm":
            preemptor = choose_preemptor(
                self.request.by, launch.partition, account=launch.account, qos=launch.qos
            )
        how = "SIGTERM, as Slurm sends it" if preemptor is None else preemptor.text
        self.reporter.say(f"its nodes will be taken by {how}")
        return preemptor

    def _start_alone(self, dependency: str | None) -> None:
        self._start(plan_one(self._request("alone"), os.environ), dependency)

    def _start(self, planned: PlannedRun, dependency: str | None = None) -> SubmittedRun:
        # An interrupt between the submission and its note here would leave the job behind.
        with uninterrupted(self.executor):
            self.jobs.append(start(planned, self.executor, dependency=dependency))
        return self.jobs[-1]

    def _watch_alone(self, alone: SubmittedRun) -> list[Attempt]:
        """Wait until the second run is finished; its attempts."""
        watch = Watch(alone.run, self.reporter, self.request.patience_s)
        self.reporter.begin(f"{alone.run.name}, job {alone.job_id}", self.steps)
        if self.executor == "slurm":
            watch.until("did not start after the run it waited for had finished", bool)
        return watch.until("did not finish", _is_finished)

    def _started_again(self, job: SubmittedRun, last: Attempt) -> list[str]:
        """That Slurm started the job of a finished run once more, if it did."""
        if self.executor != "slurm":
            return []
        try:
            facts = job_facts(job.job_id)
        except MgptError as error:
            self.reporter.say(f"whether it started again is not known: {error.what}")
            return []
        if facts.restarts <= last.restart_count:
            return []
        return [f"job {job.job_id} was started again after its run had finished"]

    def _request(self, which: str) -> SubmitRequest:
        ask = self.request
        micro = max(1, _BATCH // ask.gpus)
        settings = {
            "train.max_steps": self.steps,
            "train.warmup_steps": self.steps // 10,
            "train.device": ask.device,
            "train.global_batch_size": micro * ask.gpus,
            "train.micro_batch_size": micro,
            # A loss for every step, so that it can be said where two runs part.
            "train.log_every_steps": 1,
        }
        launch: dict[str, object] = {"gpus": ask.gpus, "nodes": ask.nodes}
        if self.executor == "slurm":
            # Whole nodes, so that the job which takes them hits no other user's job.
            launch |= {"time_min": ask.time_min, "exclusive": True}
            launch |= {"gpu_request": "none"} if ask.device == "cpu" else {}
            given = {"partition": ask.partition, "account": ask.account, "qos": ask.qos}
            launch |= {key: value for key, value in given.items() if value is not None}
        return SubmitRequest(
            configs=(PRESET,),
            name=f"{self._name}-{which}",
            launch=launch,
            assignments=(*(f"{key}={value}" for key, value in settings.items()), *ask.assignments),
            sbatch=ask.sbatch,
            site=ask.site,
            executor=self.executor,
            runs_dir=ask.runs_dir,
        )

    # -- taking the nodes away ------------------------------------------------------------------

    def _preempt_run(
        self, job: SubmittedRun, watch: Watch, preemptor: Preemptor | None, before: int
    ) -> str:
        """Do it; returns a sentence about what was done."""
        if preemptor is None:
            self.reporter.say("preempting it: SIGTERM")
            preempt_local(job)
            return "SIGTERM, as Slurm sends it"
        if preemptor.partition is None:
            self.reporter.say(f"scontrol requeue {job.job_id}")
            requeue(job.job_id)
            return preemptor.text
        why = self._submit_preemptor(watch, preemptor, before)
        if not why:
            return f"job {self.helpers[-1]}, submitted {preemptor.where}, which preempted it"
        if self.request.by == "preemption":
            raise DrillFailed(
                f"no preemption: {why}", fix="--by requeue tries all the rest of a drill"
            )
        self.reporter.say(f"{why}: scontrol requeue {job.job_id} instead")
        requeue(job.job_id)
        return f"scontrol requeue ({why})"

    def _submit_preemptor(self, watch: Watch, preemptor: Preemptor, before: int) -> str:
        """Why there was no preemption; empty if there was one."""
        try:
            self.helpers.append(preemptor.preempt(watch.nodes))
        except MgptError as error:
            return error.what
        helper = self.helpers[-1]
        self.reporter.say(f"job {helper}, submitted {preemptor.where}, asks for its nodes")
        too_late = int(_TOO_LATE * self.steps)

        def happened(seen: list[Attempt]) -> bool:
            """Whether the attempt was preempted: it got a signal, ended, or has a successor."""
            halted = seen[before - 1]
            return len(seen) > before or bool(halted.signals) or halted.ended

        def decided(seen: list[Attempt]) -> bool:
            """Whether it was preempted, or is too close to its end for that."""
            return happened(seen) or seen[before - 1].last_step >= too_late

        patience_s = min(_PREEMPTION_PATIENCE_S, self.request.patience_s)
        attempts = watch.wait(decided, patience_s, "was not preempted")
        if attempts is not None and happened(attempts):
            return ""
        waiting = ask_squeue([helper]).get(helper)
        self._end_helpers()
        reason = f" (it waits for {waiting.reason})" if waiting and waiting.reason else ""
        return f"job {helper} did not preempt it in time{reason}"

    # -- leaving nothing behind -----------------------------------------------------------------

    @contextmanager
    def leaving_nothing_behind(self) -> Iterator[None]:
        """End all jobs; remove the runs too unless they are to be kept or something went wrong."""
        try:
            yield
        except DrillFailed:
            self.keep = True
            raise
        finally:
            self._end_helpers()
            for job in self.jobs:
                self._end(job)
            for job in self.jobs:
                if not self.keep:
                    shutil.rmtree(job.run.path, ignore_errors=True)
            if self.keep and self.jobs:
                self.reporter.say("kept: " + ", ".join(str(job.run.path) for job in self.jobs))

    def _end_helpers(self) -> None:
        for helper in self.helpers:
            try:
                cancel(helper, or_over=True)
            except MgptError as error:
                self.reporter.say(f"job {helper} could not be cancelled: {error.what}")

    def _end(self, job: SubmittedRun) -> None:
        if job.process is not None:
            stop_local(job)
            return
        try:
            seen = look_at_one(job.run)
            if seen.state.is_live:
                self.reporter.say(cancel_run(job.run, seen, save=False).text)
            # The batch script's last lines still read the folder after the run has finished.
            deadline = time.monotonic() + _JOB_END_PATIENCE_S
            while (known := ask_squeue([job.job_id]).get(job.job_id)) and known.is_active:
                if time.monotonic() > deadline:
                    wait = duration(_JOB_END_PATIENCE_S)
                    self.reporter.say(f"job {job.job_id} is {known.state} {wait} after its cancel")
                    return
                time.sleep(_POLL_S)
        except MgptError as error:
            self.reporter.say(f"job {job.job_id} could not be ended: {error.what}")


def _is_finished(attempts: list[Attempt]) -> bool:
    return bool(attempts) and attempts[-1].cause == Cause.FINISHED


def _faults(
    disturbed: RunDir, alone: RunDir, halted: Attempt, again: Attempt, attempts: list[Attempt]
) -> list[str]:
    faults = []
    if halted.cause not in (Cause.PREEMPTED, Cause.REQUEUED):
        faults.append(f"the attempt whose nodes were taken ended as {halted.cause!r}")
    if not again.restored_step:
        faults.append(
            f"the checkpoint of step {halted.last_step} was lost: the next attempt began at 0"
        )
    elif again.restored_step != halted.last_step:
        faults.append(
            f"{halted.last_step - again.restored_step} steps were lost: it was stopped at "
            f"step {halted.last_step} and continued from {again.restored_step}"
        )
    unequal = bit_differences(disturbed, alone)
    if unequal:
        nodes = {node for attempt in attempts for node in attempt.nodes}
        if len(nodes) > 1:
            unequal.append(
                f"the attempts ran on {', '.join(sorted(nodes))}: other models of processor or GPU "
                "give other bits; --sbatch constraint=FEATURE keeps a run to one kind"
            )
    return [*faults, *unequal, *(finding.what for finding in node_findings([disturbed, alone]))]

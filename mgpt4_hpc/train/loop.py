"""The training loop, in the order in which things happen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from mgpt4_hpc.config.schema import TrainConfig
from mgpt4_hpc.data.batching.batch import Batch
from mgpt4_hpc.data.batching.workers import StillWaiting
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.formatting import counted
from mgpt4_hpc.telemetry import tags
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.time_buckets import (
    CHECKPOINT_STALL,
    DATA_WAIT,
    PRODUCTIVE,
    VALIDATION,
    Buckets,
    Stopwatch,
    Throughput,
)
from mgpt4_hpc.train.health.loss_health import Health
from mgpt4_hpc.train.health.watchdog import Watchdog
from mgpt4_hpc.train.mfu import Utilisation
from mgpt4_hpc.train.recorder import Recorder
from mgpt4_hpc.train.saving import Saving
from mgpt4_hpc.train.state import Ending, TrainState
from mgpt4_hpc.train.step import StepResult, TrainStep
from mgpt4_hpc.train.stopping.stop import ANOTHER_RANK, StopRequest, StopSource
from mgpt4_hpc.train.stopping.stop_schedule import Pacing
from mgpt4_hpc.train.validation.validation_answers import NO_ANSWERS, ValidationAnswers


@dataclass
class Loop:
    """Everything the loop needs, built elsewhere.

    Attributes:
        state: counters, changed in place.
        config: settings of the optimisation.
        batches: per step this rank's micro-batches, from ``state.samples_seen`` on, for ever;
            StillWaiting instead, and no more of them, if a stop is wanted and they do not come.
        step: forward, backward, update.
        ranks: this process among the others.
        stop: requests to stop.
        pacing: when to stop after a request; used on the first rank.
        saving: checkpoints; does nothing on ranks other than the first.
        planned_steps: how many steps the run's settings ask for now, which may have changed
            while it trains; asked on the first rank.
        recorder: curves, ledger, log; silent on ranks other than the first.
        evaluate: held-out loss; None instead of it if a stop put an end to it. Or no function.
        answer: what is said about held-out images; None as of ``evaluate``. Or no function.
        evaluate_first: whether the last attempt left out the held-out loss of the step we are at.
        peak_memory_gib: largest memory allocated on the device so far.
        utilisation: of a step's micro-batches and seconds, the share of the device's peak.
        buckets: where the seconds go.
        uniform_loss: ln(vocabulary), what a model loses that knows nothing; None if unknown.
        watchdog: gets a sign of life at each step.
    """

    state: TrainState
    config: TrainConfig
    batches: Iterator[Sequence[Batch]]
    step: TrainStep
    ranks: Ranks
    stop: StopSource
    pacing: Pacing
    saving: Saving
    recorder: Recorder
    planned_steps: Callable[[], int] | None = None
    evaluate: Callable[[], float | None] | None = None
    answer: Callable[[], ValidationAnswers | None] | None = None
    evaluate_first: bool = False
    peak_memory_gib: Callable[[], float] = lambda: 0.0
    utilisation: Utilisation = lambda micro_batches, step_s: None
    buckets: Buckets = field(default_factory=Buckets)
    uniform_loss: float | None = None
    watchdog: Watchdog = field(default_factory=lambda: Watchdog(0.0, 0.0))

    def __post_init__(self) -> None:
        self.max_steps = self.config.max_steps
        """Where the run ends, the same on all ranks."""

    def follow_plan(self) -> None:
        """Take over, on all ranks, the number of steps that is asked for now.

        A run that has passed it ends at the step that it has reached.
        """
        if self.planned_steps is not None:
            planned = self.planned_steps() if self.ranks.is_first else 0
            self.max_steps = max(int(self.ranks.sum_on_cpu([planned])[0]), self.state.step)


def train(loop: Loop) -> tuple[Ending, str]:
    """Train until the last step or until any rank wants to stop; then save.

    Returns:
        how it ended, and what asked for the stop, or ended the run before its last step.

    Raises:
        FatalTrainingError: the loss is hopeless.
    """
    progress = _Progress(loop)
    loop.saving.start_clock()
    ending, reason = _steps(loop, progress)
    with loop.buckets.time(CHECKPOINT_STALL), loop.watchdog.phase("last save"):
        loop.saving.save_now(loop.state)
    # No line of a step may have come since the last one, or ever: where the seconds went.
    seconds = loop.buckets.seconds
    loop.recorder.event(Kind.STEPS, step=loop.state.step, buckets=seconds)
    with loop.watchdog.phase("waiting for the last save"):
        loop.ranks.barrier()  # patiently: storage may be slow, where a step's collective may not
    return ending, reason


def _steps(loop: Loop, progress: _Progress) -> tuple[Ending, str]:
    state, config, buckets = loop.state, loop.config, loop.buckets
    if loop.evaluate_first and not _validate(loop, progress):
        return Ending.STOPPED, _reason(loop)
    while not _all_steps_done(loop):
        if 0 < config.early_stop <= state.num_worse:
            return Ending.FINISHED, _why_early(state)
        with buckets.time(DATA_WAIT):
            micro_batches = _next_batches(loop)
        with buckets.time(PRODUCTIVE):
            agreed = _agree(loop, progress, micro_batches)
            if agreed.stop:
                return Ending.STOPPED, _reason(loop)
            assert micro_batches is not None, "who has no data says stop"
            result = loop.step(micro_batches, state.step, agreed.global_tokens)
            state.advance(config.global_batch_size, agreed.replaced)
            progress.note()
            if agreed.replaced:
                progress.log_substitutions(micro_batches)
            if state.step % config.log_every_steps == 0 or state.step == loop.max_steps:
                progress.report(result, micro_batches)
        # Once the end is near, the next attempt validates: here it would not be finished.
        due = loop.evaluate is not None and state.step % config.eval_every_steps == 0
        if due and (agreed.asked or not _validate(loop, progress)):
            return Ending.STOPPED, _reason(loop)
        with buckets.time(CHECKPOINT_STALL):
            saved = loop.saving.save_if_due(state)
        if saved:  # a kill then leaves no second before it unexplained
            loop.recorder.event(Kind.STEPS, step=state.step, buckets=buckets.seconds)
        loop.recorder.beat(state.step)
        loop.watchdog.beat(state.step)
    return Ending.FINISHED, ""


def _all_steps_done(loop: Loop) -> bool:
    """Whether the run ends here; at its last step the ranks look whether it goes further."""
    if loop.state.step < loop.max_steps:
        return False
    loop.follow_plan()
    return loop.state.step >= loop.max_steps


@dataclass(frozen=True)
class _StopVote:
    """What the ranks agreed on before a step.

    Attributes:
        stop: whether to stop now.
        asked: whether any rank was asked to stop, now or by some later moment.
        global_tokens: answer tokens of the step, over all ranks.
        replaced: bad samples of the step that others stand in for, over all ranks.
    """

    stop: bool
    asked: bool
    global_tokens: int
    replaced: int


def _next_batches(loop: Loop) -> Sequence[Batch] | None:
    """The next step's data; None if storage is away when a stop is wanted, which cannot wait."""
    try:
        return next(loop.batches)
    except StillWaiting:
        return None


def _agree(loop: Loop, progress: _Progress, micro_batches: Sequence[Batch] | None) -> _StopVote:
    """One reduction of CPU numbers: does any rank want to stop, how many answer tokens are there.

    Asked after the data arrived and before anything is computed: the state is then exactly that
    of a completed step, and the batch that was fetched will be fetched again.

    Any rank may be asked to stop; when to do it, by what it knows of the end, is for rank 0 to
    say. One that was not asked itself learns of it here, and says so before the next step. A rank
    whose data do not come says now.
    """
    request = loop.stop.poll()
    due = request is not None and loop.ranks.is_first and progress.is_due(request)
    tokens = sum(batch.num_answer_tokens for batch in micro_batches or ())
    replaced = sum(len(batch.substitutions) for batch in micro_batches or ())
    asked, stop, global_tokens, all_replaced = loop.ranks.sum_on_cpu(
        [request is not None, due or micro_batches is None, tokens, replaced]
    )
    if asked and request is None:
        loop.stop.request(ANOTHER_RANK)
    return _StopVote(stop > 0, asked > 0, int(global_tokens), int(all_replaced))


def _reason(loop: Loop) -> str:
    request = loop.stop.poll()
    return ANOTHER_RANK if request is None else request.reason


def _why_early(state: TrainState) -> str:
    lowest = "no held-out loss was a number"
    if state.best_loss is not None:
        lowest = f"the lowest, {state.best_loss:.4f}, is of step {state.best_step}"
    validations = counted(state.num_worse, "validation")
    return f"no new lowest held-out loss in the last {validations}; {lowest}"


def _validate(loop: Loop, progress: _Progress) -> bool:
    """Record held-out loss and answers; False, on every rank, if a stop put an end to them."""
    assert loop.evaluate is not None
    with loop.buckets.time(VALIDATION), loop.watchdog.phase("validation"):
        answers = NO_ANSWERS if loop.answer is None else loop.answer()
        loss = None if answers is None else loop.evaluate()
        if answers is None or loss is None:
            return False
        progress.report_validation(loss, answers)
    return True


class _Progress:
    """What happened since the last report, and the report."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.throughput = Throughput()
        self.watch = Stopwatch()
        self.last_waited_s = loop.buckets.seconds.get(DATA_WAIT, 0.0)
        self.last_report = loop.buckets.elapsed_s
        self.first = True
        self.health = Health(
            loop.recorder,
            max_nonfinite_steps=loop.config.max_nonfinite_steps,
            uniform_loss=loop.uniform_loss,
        )

    def is_due(self, request: StopRequest) -> bool:
        """Whether the moment to stop has come."""
        loop = self.loop
        return loop.pacing.is_due(request, loop.saving.longest_s, self.throughput.longest_step_s)

    def note(self) -> None:
        """Count one step; reads nothing from the device."""
        loop = self.loop
        self.throughput.add(loop.config.global_batch_size, self.watch.lap())
        if self.first:
            self.first = False
            loop.recorder.event(
                Kind.FIRST_STEP,
                step=loop.state.step,
                since_start_s=loop.buckets.elapsed_s,
                buckets=loop.buckets.seconds,
            )

    def report(self, result: StepResult, micro_batches: Sequence[Batch]) -> None:
        """Read the step's loss from the device, reduce it over the ranks, and record it."""
        loop, step = self.loop, self.loop.state.step
        nonfinite_steps = round(loop.step.nonfinite_steps.item())  # the same on every rank
        skipped_steps = nonfinite_steps + round(loop.step.overflow_steps.item())
        cut_here = sum(batch.num_cut_turns for batch in micro_batches)
        loss_sum, tokens, cut_turns = loop.ranks.sum_on_cpu(
            [result.loss_sum.item(), result.num_tokens, cut_here]
        )
        loop.follow_plan()
        loss = loss_sum / max(tokens, 1.0)
        lr = loop.step.schedule(step - 1)
        rate = self.throughput.samples_per_s
        values = {
            tags.TRAIN_LOSS: loss,
            tags.TRAIN_LR: lr,
            tags.TRAIN_GRAD_NORM: result.grad_norm.item(),
            tags.STEP_S: self.throughput.median_step_s,
            tags.DATA_WAIT_FRACTION: self._data_wait_fraction(),
            tags.SAMPLES_PER_S: rate,
            tags.SKIPPED: float(loop.state.samples_replaced),
            tags.SKIPPED_STEPS: float(skipped_steps),
        }
        if cut_turns:
            values[tags.CUT_TURNS] = cut_turns
        mfu = loop.utilisation(micro_batches, self.throughput.median_step_s)
        if mfu is not None:
            values[tags.MFU] = mfu
        peak = loop.peak_memory_gib()
        if peak:
            values[tags.PEAK_GIB] = peak
        remaining_s = max(loop.max_steps - step, 0) * self.throughput.median_step_s
        line = (
            f"step {step}/{loop.max_steps}  loss {loss:.4f}  lr {lr:.3g}  "
            f"{rate:.1f} samples/s  {_clock(remaining_s)} left"
        )
        loop.recorder.logged(step, values, loop.buckets.seconds, line)
        self.health.look(step, loss, nonfinite_steps)

    def log_substitutions(self, micro_batches: Sequence[Batch]) -> None:
        """Record the bad samples of all ranks, before a checkpoint says that they were passed."""
        own = [item for batch in micro_batches for item in batch.substitutions]
        for substitutions in self.loop.ranks.gather(own):
            self.loop.recorder.substituted(substitutions)

    def report_validation(self, loss: float, answers: ValidationAnswers) -> None:
        """Record the held-out loss, and what was said about held-out images."""
        step = self.loop.state.step
        lowest = " (the lowest so far)" if self.loop.state.validated(loss) else ""
        self.loop.state.scored(answers.headlines)
        scores = {"scores": dict(answers.scores)} if answers.scores else {}
        self.loop.recorder.event(Kind.VALIDATION, step=step, loss=loss, **scores)
        failing = [f"{n} {v:.0%}" for n, v in answers.scores.items() if n.endswith("_failing")]
        self.loop.recorder.logged(
            step,
            {tags.VAL_LOSS: loss, **{f"{tags.EVAL}{n}": v for n, v in answers.scores.items()}},
            self.loop.buckets.seconds,
            "  ".join([f"step {step}  held-out loss {loss:.4f}{lowest}", *failing]),
        )
        self.loop.recorder.answered(step, answers.cards, answers.texts)
        self.watch.lap()  # not a part of the next step

    def _data_wait_fraction(self) -> float:
        buckets = self.loop.buckets
        now, waited = buckets.elapsed_s, buckets.seconds.get(DATA_WAIT, 0.0)
        fraction = (waited - self.last_waited_s) / max(now - self.last_report, 1e-9)
        self.last_waited_s, self.last_report = waited, now
        return min(1.0, fraction)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"

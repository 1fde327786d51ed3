"""The composition root: from a run directory to a finished, or cleanly stopped, attempt.

The only file that knows every room. Read :func:`run_training` from top to bottom.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, TypeVar

import torch

from mgpt4_hpc import __version__
from mgpt4_hpc.checkpoint.saver import AsyncSaver
from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.config.missing_inputs import unset_paths
from mgpt4_hpc.config.run_config_file import read_own_config
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.distributed import PEER_TIMEOUT, Ranks
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.bundle.bundle import Bundle, open_bundle
from mgpt4_hpc.model.conversion.variants import require_variant
from mgpt4_hpc.model.nn.lora import lora_parameters
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4
from mgpt4_hpc.model.nn.precision import choose_precision
from mgpt4_hpc.retry import retry_storage
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import read_ledgers
from mgpt4_hpc.telemetry.time_buckets import START_UP, WEIGHTS_LOADING, WIND_DOWN, Buckets
from mgpt4_hpc.train.build import build_run_model, build_step, uniform_loss
from mgpt4_hpc.train.checkpoint_state import manifest_facts, restore, snapshot
from mgpt4_hpc.train.ddp import wrap_projector
from mgpt4_hpc.train.device import choose_device, peak_memory_gib, set_up_process
from mgpt4_hpc.train.health.watchdog import Watchdog
from mgpt4_hpc.train.inputs.loaders import Batches, open_batches
from mgpt4_hpc.train.inputs.planned_steps import PlannedSteps
from mgpt4_hpc.train.inputs.resolve import Inputs, find_inputs, inputs_vanished
from mgpt4_hpc.train.loop import Loop, train
from mgpt4_hpc.train.mfu import utilisation
from mgpt4_hpc.train.recorder import FirstRankRecorder, HangNote, Recorder, say_at_each_rank
from mgpt4_hpc.train.saving import FirstRankSaving, SavePolicy, Saving
from mgpt4_hpc.train.state import Ending, Outcome, TrainState
from mgpt4_hpc.train.step import TrainStep
from mgpt4_hpc.train.stopping.stop import ANOTHER_RANK, Interrupted, StopSource, unless_stopped
from mgpt4_hpc.train.stopping.stop_schedule import Pacing
from mgpt4_hpc.train.validation.validation_answers import HeldOutAnswers

T = TypeVar("T")

_VERSIONED = ("torch", "transformers", "timm", "numpy")


def run_training(
    run: RunDir,
    ranks: Ranks,
    stop: StopSource,
    *,
    claim: Mapping[str, Any],
    started_at: float | None = None,
    end: Callable[[Outcome, Recorder], None] | None = None,
) -> Outcome:
    """Train a run from where it stands until it is finished or asked to stop.

    The process group must stand already if there is more than one rank.

    Args:
        run: its directory.
        ranks: this process among the others.
        stop: asked once per step.
        claim: who runs this attempt; its keys go into the ledger's start line.
        started_at: unix time of the process's start, for the ledger.
        end: called on rank 0 after the last save and before the ledger closes, to decide what
            happens next; the other ranks wait for it.

    Raises:
        MgptError: with the fix, for everything that the user can mend.
    """
    buckets = Buckets()
    if started_at is not None:
        buckets.add(START_UP, time.time() - started_at)
    run = retry_storage(run.held)
    config = read_own_config(run.config_file).config
    _require_runnable(config, ranks)
    device = choose_device(config, ranks)
    set_up_process(config, ranks)
    hang_note = HangNote(run.ledger, ranks.rank)
    watchdog = Watchdog(config.train.hang_timeout_s, config.train.slow_timeout_s, note=hang_note)
    watchdog.start()
    try:
        with watchdog.phase("claiming an attempt"):
            number = hang_note.attempt = ranks.first_does(
                lambda: retry_storage(lambda: _claim(run, claim))
            )
        processes = ranks.gather({"rank": ranks.rank, "host": platform.node(), "pid": os.getpid()})
        recorder = FirstRankRecorder(run, number) if ranks.is_first else Recorder()
        say_at_each_rank(
            f"=== {run.name}: attempt {number}, rank {ranks.rank} of {ranks.world_size}, "
            f"process {os.getpid()} on {platform.node()}, {device} ==="
        )
        attempt = _Attempt(
            run, config, ranks, stop, device, number, recorder, buckets, watchdog, end
        )
        start = {"processes": processes, "started_at": started_at, "device": device.type}
        return attempt.recorded(start | _surroundings(claim, ranks))
    finally:
        watchdog.close()


def _require_runnable(config: RunConfig, ranks: Ranks) -> None:
    if unset := unset_paths(config):
        raise ConfigError("the settings are not complete", faults=unset)
    if config.train.global_batch_size < ranks.world_size:
        raise ConfigError(
            f"train.global_batch_size {config.train.global_batch_size} is below the "
            f"{ranks.world_size} ranks: some would have nothing to do",
            fix="use fewer GPUs",
        )


def _claim(run: RunDir, claim: Mapping[str, Any]) -> int:
    number = run.claim_attempt(dict(claim))
    run.clear_markers()  # it was started again, perhaps with scontrol
    return number


@dataclass
class _Attempt:
    """One attempt on one rank, in the order of its methods; all ranks go through the same."""

    run: RunDir
    config: RunConfig
    ranks: Ranks
    stop: StopSource
    device: torch.device
    number: int
    recorder: Recorder
    buckets: Buckets
    watchdog: Watchdog
    end: Callable[[Outcome, Recorder], None] | None

    def __post_init__(self) -> None:
        self.pacing = Pacing(self.recorder)

    def recorded(self, start: Mapping[str, Any]) -> Outcome:
        """The whole attempt, between its START and its end (or FAULT) in the ledger."""
        try:
            self.recorder.event(Kind.START, attempt=self.number, **start)
            return self.go()
        except Exception as error:
            self.recorder.event(
                Kind.FAULT,
                what=type(error).__name__,
                reason=str(error),
                buckets=self.buckets.seconds,
            )
            raise
        finally:
            self.recorder.close()

    def go(self) -> Outcome:
        """From the inputs to the decision about what follows."""
        store = CheckpointStore(
            self.run.checkpoints,
            keep_last=self.config.checkpoint.keep_last,
            keep_every_steps=self.config.checkpoint.keep_every_steps or None,
            attempt=self.number,
        )
        with self.buckets.time(WEIGHTS_LOADING), self.watchdog.phase("opening the weights"):
            bundle = self._patiently(lambda: open_bundle(self.config.model.weights))
            variant = self.config.model.variant
            require_variant(variant, bundle.architecture, self.config.model.weights)
        with self.buckets.time(START_UP):
            inputs = self._find_inputs(bundle, store)
        if inputs is None or self._must_stop():
            return self._stopped_early(inputs, store)
        with self.buckets.time(WEIGHTS_LOADING), self.watchdog.phase("loading the weights"):
            model = self._build_model(bundle, inputs)
        # Interrupted on any rank, it is missing on that one alone.
        if self._must_stop() or self.ranks.any_says(model is None):
            return self._stopped_early(inputs, store)
        assert model is not None
        return self._train(bundle, store, inputs, model)

    def _find_inputs(self, bundle: Bundle, store: CheckpointStore) -> Inputs | None:
        """What rank 0 finds; None if a stop came first. Indexing shards can take hours."""
        patience_s = None if self.ranks.is_first else PEER_TIMEOUT.total_seconds()
        with self.watchdog.phase("finding the inputs", patience_s):
            found: Inputs | None = self.ranks.first_does(
                lambda: unless_stopped(
                    self.stop,
                    lambda: self._patiently(
                        lambda: find_inputs(
                            self.run,
                            self.config,
                            bundle,
                            store,
                            self.recorder,
                            self.device,
                            on_progress=self.watchdog.beat,
                        )
                    ),
                )
            )
        return found

    def _build_model(self, bundle: Bundle, inputs: Inputs) -> MiniGPT4 | None:
        """The run's model; None if a stop came first, here or where it is read for this rank."""

        def run_locally(read: Callable[[], T]) -> T:
            """Read with retries; raises ``Interrupted`` if a stop comes."""
            with self.stop.interrupting():
                return self._patiently(read)

        # Only what a rank does alone: elsewhere the others wait for it.
        try:
            return build_run_model(
                self.config, bundle, inputs.start, self.device, self.ranks, run_locally
            )
        except Interrupted:
            return None

    def _patiently(self, action: Callable[[], T]) -> T:
        """Read what is on shared storage; see retry.py."""
        return retry_storage(action, vanished=lambda: inputs_vanished(self.run, self.config))

    def _must_stop(self) -> bool:
        """Whether any rank must stop now: start-up can outlast a grace time."""
        with self.watchdog.phase("waiting for the other ranks"):
            if not self.ranks.any_says(self.stop.poll() is not None):
                return False
            if self.stop.poll() is None:
                self.stop.request(ANOTHER_RANK)
            request = self.stop.poll()
            return self.ranks.any_says(
                self.ranks.is_first and request is not None and self.pacing.is_due(request)
            )

    def _stopped_early(self, inputs: Inputs | None, store: CheckpointStore) -> Outcome:
        """End before the first step; log its seconds, which no line of a step holds."""
        if inputs is None:
            step = self.ranks.first_does(lambda: max(store.steps(), default=0))
        else:
            step = inputs.restored_step
        self.recorder.event(Kind.STEPS, step=step, buckets=self.buckets.seconds)
        request = self.stop.poll()
        reason = ANOTHER_RANK if request is None else request.reason
        outcome = Outcome(Ending.STOPPED, step, step, step or None, reason, self.number)
        self._wind_down(outcome)
        return outcome

    def _train(
        self, bundle: Bundle, store: CheckpointStore, inputs: Inputs, model: MiniGPT4
    ) -> Outcome:
        with self.buckets.time(START_UP), self.watchdog.phase("building"):
            loop, batches = self._build(bundle, inputs, model)
        saver: AsyncSaver | None = None
        if self.ranks.is_first:
            saver = self._open_saver(store)
            loop.saving = self._first_rank_saving(saver, bundle, inputs, model, loop.step)
        try:
            ending, reason = train(loop)
            if ending is Ending.FINISHED and reason:
                self.recorder.say(f"finished early: {reason}")
            if staged := batches.staging.facts:
                self.recorder.event(Kind.STAGING, **staged)
            outcome = Outcome(
                ending,
                loop.state.step,
                inputs.restored_step,
                loop.saving.durable_step,
                reason,
                self.number,
                loop.state.num_worse,
            )
            with self.buckets.time(WIND_DOWN):
                self._wind_down(outcome)
            return outcome
        finally:
            batches.close()
            if saver is not None:
                saver.close(timeout=60.0)

    def _build(self, bundle: Bundle, inputs: Inputs, model: MiniGPT4) -> tuple[Loop, Batches]:
        """Step, data and validation, standing where the checkpoint left off; saves nothing yet."""
        config, ranks = self.config, self.ranks
        state = TrainState()
        lora = list(lora_parameters(model.language_model).values())
        projector = wrap_projector(model.llama_proj, self.device, ranks.world_size, lora)
        step = build_step(config, model, projector, ranks, self.device)
        if inputs.checkpoint is not None:
            restore(inputs.checkpoint, state, model, step)
        self.recorder.open_curves(inputs.restored_step)
        batches = open_batches(
            config,
            inputs.indexes,
            bundle,
            ranks,
            state.samples_seen,
            self.run.path,
            give_up=lambda: self.stop.poll() is not None,
        )
        if batches.staging.told:
            self.recorder.say(batches.staging.told)
        return self._loop(bundle, inputs, model, state, step, batches), batches

    def _loop(
        self,
        bundle: Bundle,
        inputs: Inputs,
        model: MiniGPT4,
        state: TrainState,
        step: TrainStep,
        batches: Batches,
    ) -> Loop:
        config, ranks = self.config, self.ranks
        evaluate = batches.evaluation(model, self.device, ranks, self._gives_up)
        answer = None
        if config.train.eval_suites:
            answer = HeldOutAnswers(config, inputs.indexes, bundle, model, ranks, self._gives_up)
        # The last attempt may have stopped where a validation was due, before it was made.
        at = state.step if state.step != state.validated_step else 0
        left_out = evaluate is not None and at and at % config.train.eval_every_steps == 0
        return Loop(
            state=state,
            config=config.train,
            batches=iter(batches),
            step=step,
            ranks=ranks,
            stop=self.stop,
            pacing=self.pacing,
            saving=Saving(),
            recorder=self.recorder,
            planned_steps=PlannedSteps(self.run, config, self.recorder, state),
            evaluate=evaluate,
            answer=answer,
            evaluate_first=bool(left_out),
            peak_memory_gib=peak_memory_gib(self.device),
            utilisation=utilisation(
                bundle.architecture,
                bundle.llm_config,
                self.device,
                choose_precision(config.model.precision, self.device),
            ),
            buckets=self.buckets,
            uniform_loss=uniform_loss(model),
            watchdog=self.watchdog,
        )

    def _first_rank_saving(
        self, saver: AsyncSaver, bundle: Bundle, inputs: Inputs, model: MiniGPT4, step: TrainStep
    ) -> FirstRankSaving:
        return FirstRankSaving(
            saver,
            lambda: snapshot(model, step),
            manifest_facts(self.run.run_id, self.config, inputs, bundle, self.number, self.ranks),
            self.recorder,
            policy=SavePolicy.of(self.config),
            restored_step=inputs.checkpoint.step if inputs.checkpoint else None,
            longest_s=max((a.save_s for a in read_ledgers(self.run.ledger)), default=0.0),
        )

    def _gives_up(self) -> bool:
        """Asked between the batches of a validation, and between the tokens of its answers."""
        self.watchdog.beat()
        return self.stop.poll() is not None

    def _open_saver(self, store: CheckpointStore) -> AsyncSaver:
        saver = AsyncSaver(
            store,
            guard=lambda: _before_official(self.run, self.number, self.recorder),
            on_durable=lambda step, path, seconds: self.recorder.saved(
                step, path, seconds, saver.last_stall_s
            ),
            on_failure=self.recorder.save_failed,
        )
        return saver

    def _wind_down(self, outcome: Outcome) -> None:
        """Let rank 0 decide what follows, while the others wait."""
        with self.watchdog.phase("deciding what follows"):
            if self.ranks.is_first and self.end is not None:
                self.end(outcome, self.recorder)
            say_at_each_rank(
                f"=== attempt {outcome.attempt} {outcome.ending} at step "
                f"{outcome.step}/{self.config.train.max_steps}: rank {self.ranks.rank} leaves ==="
            )
            self.recorder.flush()
            # No rank leaves before rank 0 has saved and decided: the first to go takes the others
            # along.
            self.ranks.barrier()


def _surroundings(claim: Mapping[str, Any], ranks: Ranks) -> dict[str, Any]:
    versions = {name: version(name) for name in _VERSIONED}
    versions |= {"mgpt4-hpc": __version__, "python": platform.python_version()}
    return {
        **claim,
        "world_size": ranks.world_size,
        "hostname": platform.node(),
        "versions": versions,
    }


def _before_official(run: RunDir, attempt: int, recorder: Recorder) -> None:
    """In the saver's thread, right before a checkpoint gets its name."""
    run.assert_newest(attempt)
    recorder.flush()

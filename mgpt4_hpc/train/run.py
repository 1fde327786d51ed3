"""The composition root: from a run directory to a finished, or cleanly stopped, attempt.

The only file that knows every room. Read :func:`run_training` from top to bottom.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import Any

import torch

from mgpt4_hpc import __version__
from mgpt4_hpc.checkpoint.saver import AsyncSaver
from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.config.load import unset_paths
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.config.stored import read_config
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.bundle import open_bundle
from mgpt4_hpc.model.lora import lora_parameters
from mgpt4_hpc.model.variants import require_variant
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.kinds import Kind
from mgpt4_hpc.telemetry.meters import START_UP, WEIGHTS_LOADING, WIND_DOWN, Buckets
from mgpt4_hpc.train.batches import open_batches
from mgpt4_hpc.train.building import build_run_model, build_step, uniform_loss
from mgpt4_hpc.train.ddp import wrap_projector
from mgpt4_hpc.train.device import (
    choose_device,
    choose_precision,
    peak_memory_gib,
    set_up_process,
)
from mgpt4_hpc.train.inputs import Inputs, find_inputs
from mgpt4_hpc.train.loop import Loop, train
from mgpt4_hpc.train.recorder import Recorder, SilentRecorder
from mgpt4_hpc.train.saving import FirstRankSaving, Saving
from mgpt4_hpc.train.snapshot import describe, restore, snapshot
from mgpt4_hpc.train.state import Ending, Outcome, TrainState
from mgpt4_hpc.train.stop import StopSource
from mgpt4_hpc.train.utilisation import utilisation

_VERSIONED = ("torch", "transformers", "timm", "numpy")


def run_training(
    run: RunDir,
    ranks: Ranks,
    stop: StopSource,
    *,
    claim: Mapping[str, Any],
    started_at: float | None = None,
    end: Callable[[Outcome, SilentRecorder], None] | None = None,
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
        MgptError: with the fix, for everything that a person can mend.
    """
    buckets = Buckets()
    if started_at is not None:
        buckets.add(START_UP, time.time() - started_at)
    config = read_config(run.config_file).config
    if unset := unset_paths(config):
        raise ConfigError("the settings are not complete", faults=unset)
    if config.train.global_batch_size < ranks.world_size:
        raise ConfigError(
            f"train.global_batch_size {config.train.global_batch_size} is below the "
            f"{ranks.world_size} ranks: some would have nothing to do",
            fix="use fewer GPUs",
        )
    device = choose_device(config, ranks)
    set_up_process(config, ranks)
    attempt = ranks.first_does(lambda: _claim(run, claim))
    processes = ranks.gather({"rank": ranks.rank, "host": platform.node(), "pid": os.getpid()})
    recorder = Recorder(run, attempt) if ranks.is_first else SilentRecorder()
    try:
        recorder.event(
            Kind.START,
            attempt=attempt,
            processes=processes,
            started_at=started_at,
            **_surroundings(claim, ranks),
        )
        recorder.say(
            f"=== {run.name}: attempt {attempt} on {ranks.world_size} rank(s), {device} ==="
        )
        return _attempt(run, config, ranks, stop, device, attempt, recorder, buckets, end)
    except Exception as error:
        recorder.event(
            Kind.FAULT, what=type(error).__name__, reason=str(error), buckets=buckets.seconds
        )
        raise
    finally:
        recorder.close()


def _claim(run: RunDir, claim: Mapping[str, Any]) -> int:
    number = run.claim_attempt(dict(claim))
    run.clear_markers()  # somebody started it again, perhaps with scontrol
    return number


def _attempt(
    run: RunDir,
    config: RunConfig,
    ranks: Ranks,
    stop: StopSource,
    device: torch.device,
    attempt: int,
    recorder: SilentRecorder,
    buckets: Buckets,
    end: Callable[[Outcome, SilentRecorder], None] | None,
) -> Outcome:
    store = CheckpointStore(
        run.checkpoints,
        keep_last=config.checkpoint.keep_last,
        keep_every_steps=config.checkpoint.keep_every_steps or None,
        attempt=attempt,
    )
    with buckets.time(WEIGHTS_LOADING):
        bundle = open_bundle(config.model.weights)
        require_variant(config.model.variant, bundle.architecture, config.model.weights)
    with buckets.time(START_UP):
        inputs: Inputs = ranks.first_does(lambda: find_inputs(run, config, bundle, store, recorder))
    restored_step = inputs.checkpoint.step if inputs.checkpoint else 0

    def stopped_early() -> Outcome | None:
        """End before the first step if any rank was asked to: start-up can outlast the grace."""
        if not ranks.any_says(stop.poll() is not None):
            return None
        request = stop.poll()
        outcome = Outcome(
            Ending.STOPPED,
            restored_step,
            restored_step,
            restored_step or None,
            request.reason if request is not None else "another rank's signal",
            attempt,
        )
        _wind_down(outcome, config, ranks, recorder, end)
        return outcome

    if (outcome := stopped_early()) is not None:
        return outcome
    with buckets.time(WEIGHTS_LOADING):
        model = build_run_model(config, bundle, inputs.start, device)
    if (outcome := stopped_early()) is not None:
        return outcome
    with buckets.time(START_UP):
        state = TrainState()
        lora = list(lora_parameters(model.language_model).values())
        projector = wrap_projector(model.llama_proj, device, ranks.world_size, lora)
        step = build_step(config, model, projector, ranks, device)
        if inputs.checkpoint is not None:
            restore(inputs.checkpoint, state, model, step)
        recorder.open_curves(restored_step)
        batches = open_batches(config, inputs.indexes, bundle, ranks, state.samples_seen)

    saver: AsyncSaver | None = None
    saving = Saving()
    if ranks.is_first:
        saver = AsyncSaver(
            store,
            guard=lambda: _before_official(run, attempt, recorder),
            on_durable=recorder.saved,
            on_failure=recorder.save_failed,
        )
        saving = FirstRankSaving(
            saver,
            lambda: snapshot(model, step),
            describe(config, inputs, bundle, attempt, ranks),
            recorder,
            save_every_s=config.train.save_every_s,
            restored_step=inputs.checkpoint.step if inputs.checkpoint else None,
        )
    loop = Loop(
        state=state,
        config=config.train,
        batches=iter(batches),
        step=step,
        ranks=ranks,
        stop=stop,
        saving=saving,
        recorder=recorder,
        evaluate=batches.evaluation(model, device, ranks)
        if config.train.eval_every_steps
        else None,
        peak_memory_gib=peak_memory_gib(device),
        utilisation=utilisation(
            bundle.architecture, bundle.llm_config, device, choose_precision(config, device)
        ),
        buckets=buckets,
        uniform_loss=uniform_loss(model),
    )
    try:
        ending, reason = train(loop)
        # The last save is in it, and steps that were not yet reported: what follows is winding down.
        recorder.event(Kind.STEPS, step=state.step, buckets=buckets.seconds)
        outcome = Outcome(ending, state.step, restored_step, saving.durable_step, reason, attempt)
        with buckets.time(WIND_DOWN):
            _wind_down(outcome, config, ranks, recorder, end)
        return outcome
    finally:
        batches.close()
        if saver is not None:
            saver.close(timeout=60.0)


def _wind_down(
    outcome: Outcome,
    config: RunConfig,
    ranks: Ranks,
    recorder: SilentRecorder,
    end: Callable[[Outcome, SilentRecorder], None] | None,
) -> None:
    """Let rank 0 decide what follows, while the others wait."""
    if ranks.is_first and end is not None:
        end(outcome, recorder)
    recorder.say(
        f"=== attempt {outcome.attempt} {outcome.ending} at step "
        f"{outcome.step}/{config.train.max_steps} ==="
    )
    recorder.flush()
    # Nobody leaves before rank 0 has saved and decided: the first to go takes the others along.
    ranks.barrier()


def _surroundings(claim: Mapping[str, Any], ranks: Ranks) -> dict[str, Any]:
    versions = {name: version(name) for name in _VERSIONED}
    versions |= {"mgpt4-hpc": __version__, "python": platform.python_version()}
    return {
        **claim,
        "world_size": ranks.world_size,
        "hostname": platform.node(),
        "versions": versions,
    }


def _before_official(run: RunDir, attempt: int, recorder: SilentRecorder) -> None:
    """In the saver's thread, right before a checkpoint gets its name."""
    run.assert_newest(attempt)
    recorder.flush()

"""The composition root: from a run directory to a finished, or cleanly stopped, attempt.

The only file that knows every room. Read :func:`run_training` from top to bottom.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mgpt4_hpc import __version__
from mgpt4_hpc.checkpoint.saver import AsyncSaver
from mgpt4_hpc.checkpoint.store import Checkpoint, CheckpointStore
from mgpt4_hpc.config.load import config_digest, unset_paths
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.config.stored import read_config
from mgpt4_hpc.data.index import ShardIndex
from mgpt4_hpc.data.prepare import prepare_source
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import ConfigError, WeightsError
from mgpt4_hpc.model.bundle import Bundle, open_bundle
from mgpt4_hpc.model.compiled import compile_layers
from mgpt4_hpc.model.lora import add_lora, load_lora, lora_parameters
from mgpt4_hpc.model.minigpt4 import MiniGPT4, build_model
from mgpt4_hpc.model.variants import require_variant
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.kinds import Kind
from mgpt4_hpc.telemetry.meters import START_UP, WEIGHTS_LOADING, WIND_DOWN, Buckets
from mgpt4_hpc.train.batches import open_batches
from mgpt4_hpc.train.ddp import wrap_projector
from mgpt4_hpc.train.device import (
    choose_device,
    choose_precision,
    peak_memory_gib,
    set_up_process,
)
from mgpt4_hpc.train.loop import Loop, train
from mgpt4_hpc.train.optimizer import (
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
)
from mgpt4_hpc.train.recorder import Recorder, SilentRecorder
from mgpt4_hpc.train.saving import FirstRankSaving, Saving
from mgpt4_hpc.train.schedule import WarmupCosine
from mgpt4_hpc.train.start import (
    LORA,
    OPTIMIZER,
    PROJECTOR,
    StartWeights,
    find_start_weights,
    pin,
)
from mgpt4_hpc.train.state import Ending, Outcome, TrainState
from mgpt4_hpc.train.step import TrainStep
from mgpt4_hpc.train.stop import StopSource

_VERSIONED = ("torch", "transformers", "timm", "numpy")


@dataclass
class _Inputs:
    """What rank 0 found on disk and told the others."""

    indexes: dict[str, str]
    start: StartWeights | None
    checkpoint: Checkpoint | None


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
        inputs: _Inputs = ranks.first_does(
            lambda: _find_inputs(run, config, bundle, store, recorder)
        )
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
        model = _build_model(config, bundle, inputs, device)
    if (outcome := stopped_early()) is not None:
        return outcome
    with buckets.time(START_UP):
        state = TrainState()
        lora = list(lora_parameters(model.language_model).values())
        projector = wrap_projector(model.llama_proj, device, ranks.world_size, lora)
        step = _build_step(config, model, projector, ranks, device)
        if inputs.checkpoint is not None:
            _restore(inputs.checkpoint, state, model, step)
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
            lambda: _snapshot(model, step),
            _meta(config, inputs, bundle, attempt, ranks),
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
        buckets=buckets,
        uniform_loss=_uniform_loss(model),
    )
    try:
        ending, reason = train(loop)
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


def _find_inputs(
    run: RunDir,
    config: RunConfig,
    bundle: Bundle,
    store: CheckpointStore,
    recorder: SilentRecorder,
) -> _Inputs:
    """Everything that ranks could see differently on a network file system: decided once, here."""
    indexes: dict[str, str] = {}
    digests: dict[str, str] = {}
    for source in config.data.sources:
        path = prepare_source(
            source.name,
            Path(source.path),
            Path(source.index) if source.index else None,
            run.data,
        )
        indexes[source.name] = str(path)
        digests[source.name] = ShardIndex.open(path).digest
    start = find_start_weights(config.model.projector) if config.model.projector else None
    pin(
        run,
        {
            "bundle": bundle.digest,
            "config": config_digest(config),
            **{f"index {name}": digest for name, digest in digests.items()},
            "projector": start.content if start else None,
        },
        about={"projector": start.source if start else None, **indexes},
    )
    store.clean_stale()
    checkpoint = store.load_newest(on_bad=lambda path, why: _report_bad(recorder, path, why))
    if checkpoint is not None:
        recorder.event(
            Kind.RESTORE,
            step=checkpoint.step,
            samples_seen=int(checkpoint.meta["samples_seen"]),
            path=checkpoint.path.name,
        )
        recorder.say(f"going on from {checkpoint.path.name}")
    return _Inputs(indexes, start, checkpoint)


def _report_bad(recorder: SilentRecorder, path: Path, why: str) -> None:
    recorder.event(Kind.DAMAGED, path=path.name, reason=why)
    recorder.say(
        f"WARNING: checkpoint {path.name} is damaged ({why}); falling back to an older one"
    )


def _build_model(
    config: RunConfig, bundle: Bundle, inputs: _Inputs, device: torch.device
) -> MiniGPT4:
    # Seeded right before: the projector's start must not depend on what was built earlier.
    torch.manual_seed(config.seed)
    model = build_model(
        bundle,
        precision=choose_precision(config, device),
        vision_precision=config.model.vision_precision,
        ln_vision=config.model.ln_vision,
        llm_8bit=config.model.llm_8bit,
        attention=config.model.attention,
        device=device,
        activation_checkpointing=config.model.activation_checkpointing,
    )
    if config.lora.rank:
        add_lora(
            model.language_model,
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            target_modules=config.lora.target_modules,
            seed=config.seed,
        )
    if config.model.compile:
        compile_layers(model)
    model.replay_towers(config.model.cuda_graphs)
    if inputs.start is not None:
        _start_lora(config, model, inputs.start)
        try:
            model.llama_proj.load_state_dict(inputs.start.tensors)
        except RuntimeError as error:
            raise WeightsError(
                f"the projector of {inputs.start.source} does not fit this model: {error}",
                fix="use the projector and the bundle of the same variant",
            ) from error
    elif bundle.projector_state() is None:
        torch.manual_seed(config.seed)
        start = nn.Linear(model.llama_proj.in_features, model.llama_proj.out_features)
        model.llama_proj.load_state_dict(start.state_dict())
    return model.train()


def _start_lora(config: RunConfig, model: MiniGPT4, start: StartWeights) -> None:
    if not start.lora:
        return
    if not config.lora.rank:
        raise WeightsError(
            f"the projector of {start.source} was trained together with LoRA, and needs it",
            fix="set lora.rank as it was there, and lora.alpha and lora.target_modules",
        )
    load_lora(model.language_model, start.lora, start.source)


def _uniform_loss(model: MiniGPT4) -> float:
    output_layer = model.language_model.get_output_embeddings()  # type: ignore[operator]
    return math.log(output_layer.weight.shape[0])


def _build_step(
    config: RunConfig, model: MiniGPT4, projector: nn.Module, ranks: Ranks, device: torch.device
) -> TrainStep:
    return TrainStep(
        model,
        projector,
        build_optimizer(_trained(model), config.train),
        WarmupCosine.from_config(config.train),
        world_size=ranks.world_size,
        device=device,
        fp16=choose_precision(config, device) == "fp16",
        loss_reduction=config.train.loss_reduction,
        max_grad_norm=config.train.max_grad_norm,
    )


def _restore(checkpoint: Checkpoint, state: TrainState, model: MiniGPT4, step: TrainStep) -> None:
    tensors = checkpoint.files[PROJECTOR]
    model.llama_proj.load_state_dict(
        {name.removeprefix("llama_proj."): tensor for name, tensor in tensors.items()}
    )
    if lora_parameters(model.language_model):
        lora = checkpoint.files.get(LORA, {})
        load_lora(model.language_model, lora, checkpoint.path.name)
    saved = checkpoint.files[OPTIMIZER]
    load_optimizer_tensors(step.optimizer, _trained(model), saved)
    step.load_scaler_tensors(saved)
    state.step = checkpoint.step
    state.samples_seen = int(checkpoint.meta["samples_seen"])


def _snapshot(model: MiniGPT4, step: TrainStep) -> dict[str, dict[str, torch.Tensor]]:
    projector = {
        f"llama_proj.{name}": p.detach() for name, p in model.llama_proj.named_parameters()
    }
    files = {
        PROJECTOR: projector,
        OPTIMIZER: {**optimizer_tensors(step.optimizer, _trained(model)), **step.scaler_tensors()},
    }
    if lora := lora_parameters(model.language_model):
        files[LORA] = {name: p.detach() for name, p in lora.items()}
    return files


def _trained(model: MiniGPT4) -> dict[str, nn.Parameter]:
    """Every trained parameter, under the name that its optimizer state is saved by."""
    lora = lora_parameters(model.language_model)
    projector = dict(model.llama_proj.named_parameters())
    return projector | {f"lora.{name}": parameter for name, parameter in lora.items()}


def _meta(
    config: RunConfig, inputs: _Inputs, bundle: Bundle, attempt: int, ranks: Ranks
) -> Callable[[TrainState], dict[str, Any]]:
    fixed = {
        "stage": config.stage,
        "max_steps": config.train.max_steps,
        "config_digest": config_digest(config),
        "bundle_digest": bundle.digest,
        "start": inputs.start.content if inputs.start else None,
        "lora": config.lora.model_dump(mode="json") if config.lora.rank else None,
        "code_version": __version__,
        "attempt": attempt,
        "world_size": ranks.world_size,
    }
    return lambda state: {**fixed, "samples_seen": state.samples_seen}


def _before_official(run: RunDir, attempt: int, recorder: SilentRecorder) -> None:
    """In the saver's thread, right before a checkpoint gets its name."""
    run.assert_newest(attempt)
    recorder.flush()

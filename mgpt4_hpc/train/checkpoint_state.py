"""The state of a run as tensors: what a checkpoint holds, and the way back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from mgpt4_hpc import __version__
from mgpt4_hpc.checkpoint.store import Checkpoint
from mgpt4_hpc.config.load import config_digest, settings_digest
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.model.bundle.bundle import Bundle
from mgpt4_hpc.model.nn.lora import load_lora, lora_parameters
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4
from mgpt4_hpc.train.inputs.initial_weights import LORA, OPTIMIZER, PROJECTOR
from mgpt4_hpc.train.inputs.resolve import Inputs
from mgpt4_hpc.train.optimizer import load_optimizer_tensors, optimizer_tensors
from mgpt4_hpc.train.state import TrainState
from mgpt4_hpc.train.step import TrainStep

_COUNTERS = tuple(field.name for field in fields(TrainState) if field.name != "step")


def restore(checkpoint: Checkpoint, state: TrainState, model: MiniGPT4, step: TrainStep) -> None:
    """Put a checkpoint's state into counters, model, optimizer and loss scale.

    Raises:
        CheckpointError: it is of another model or lacks something.
    """
    tensors = checkpoint.files[PROJECTOR]
    model.llama_proj.load_state_dict(
        {name.removeprefix("llama_proj."): tensor for name, tensor in tensors.items()}
    )
    if lora_parameters(model.language_model):
        lora = checkpoint.files.get(LORA, {})
        load_lora(model.language_model, lora, checkpoint.path.name)
    saved = checkpoint.files[OPTIMIZER]
    load_optimizer_tensors(step.optimizer, trained_parameters(model), saved)
    step.load_scaler_tensors(saved)
    state.step = checkpoint.step
    # Older checkpoints do not have them.
    known = {name: checkpoint.meta[name] for name in _COUNTERS if name in checkpoint.meta}
    for name, value in known.items():
        setattr(state, name, value)


def snapshot(model: MiniGPT4, step: TrainStep) -> dict[str, dict[str, torch.Tensor]]:
    """Everything trained and the optimizer's state, as named tensors by checkpoint entry."""
    projector = {
        f"llama_proj.{name}": p.detach() for name, p in model.llama_proj.named_parameters()
    }
    files = {
        PROJECTOR: projector,
        OPTIMIZER: {
            **optimizer_tensors(step.optimizer, trained_parameters(model)),
            **step.scaler_tensors(),
        },
    }
    if lora := lora_parameters(model.language_model):
        files[LORA] = {name: p.detach() for name, p in lora.items()}
    return files


def trained_parameters(model: MiniGPT4) -> dict[str, nn.Parameter]:
    """Every trained parameter, under the name that its optimizer state is saved by."""
    lora = lora_parameters(model.language_model)
    projector = dict(model.llama_proj.named_parameters())
    return projector | {f"lora.{name}": parameter for name, parameter in lora.items()}


def manifest_facts(
    run_id: str, config: RunConfig, inputs: Inputs, bundle: Bundle, attempt: int, ranks: Ranks
) -> Callable[[TrainState], dict[str, Any]]:
    """What a manifest says beside the tensors, as a function of the counters."""
    fixed = {
        "run": run_id,
        "stage": config.stage,
        "max_steps": config.train.max_steps,
        "config_digest": config_digest(config),
        "settings_digest": settings_digest(config),
        "bundle_digest": bundle.digest,
        "start": inputs.start_content,
        "lora": config.lora.model_dump(mode="json") if config.lora.rank else None,
        "code_version": __version__,
        "attempt": attempt,
        "world_size": ranks.world_size,
    }
    return lambda state: {**fixed, **{name: getattr(state, name) for name in _COUNTERS}}

"""Model and step of a run, from its configuration and its inputs."""

from __future__ import annotations

import math

import torch
from torch import nn

from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.bundle import Bundle
from mgpt4_hpc.model.nn.lora import add_lora, load_lora
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4, ModelOptions, build_model
from mgpt4_hpc.model.nn.performance.compile import compile_layers
from mgpt4_hpc.model.nn.performance.fsdp import shard_layers
from mgpt4_hpc.model.nn.performance.node_broadcast import LocalRunner
from mgpt4_hpc.model.nn.precision import choose_precision
from mgpt4_hpc.train.checkpoint_state import trained_parameters
from mgpt4_hpc.train.inputs.initial_weights import StartWeights
from mgpt4_hpc.train.optimizer import build_optimizer
from mgpt4_hpc.train.schedule import WarmupCosine
from mgpt4_hpc.train.step import StepOptions, TrainStep


def build_run_model(
    config: RunConfig,
    bundle: Bundle,
    start: StartWeights | None,
    device: torch.device,
    ranks: Ranks | None = None,
    run_locally: LocalRunner = lambda read: read(),
) -> MiniGPT4:
    """The run's model with its start weights, the seed deciding what nothing else does.

    All ``ranks`` must call it: they read the weights together, and may share them. ``run_locally``
    does each part of the reading for which no other rank is needed; it may retry or interrupt it.

    Raises:
        WeightsError: the start weights are of another model.
    """
    # Seeded right before: the projector's start must not depend on what was built earlier.
    torch.manual_seed(config.seed)
    ranks = ranks or Ranks()
    model = build_model(
        bundle,
        ModelOptions(
            precision=choose_precision(config.model.precision, device),
            vision_precision=config.model.vision_precision,
            ln_vision=config.model.ln_vision,
            llm_8bit=config.model.llm_8bit,
            attention=config.model.attention,
            activation_checkpointing=config.model.activation_checkpointing,
        ),
        device=device,
        readers=ranks if _read_together(config, device, ranks) else None,
        run_locally=run_locally,
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
    if config.model.shard_llm:
        shard_layers(model, device, ranks.world_size)
    model.replay_towers(config.model.cuda_graphs)
    if start is not None:
        _start_lora(config, model, start)
        try:
            model.llama_proj.load_state_dict(start.tensors)
        except RuntimeError as error:
            raise WeightsError(
                f"the projector of {start.source} does not fit this model: {error}",
                fix="use the projector and the bundle of the same variant",
            ) from error
    elif bundle.projector_state() is None:
        torch.manual_seed(config.seed)
        drawn = nn.Linear(model.llama_proj.in_features, model.llama_proj.out_features)
        model.llama_proj.load_state_dict(drawn.state_dict())
    return model.train()


def _read_together(config: RunConfig, device: torch.device, ranks: Ranks) -> bool:
    """Weights travel faster between GPUs than from storage, but not between CPU processes."""
    wanted = config.model.read_once_per_node
    return ranks.world_size > 1 and (
        wanted == "yes" or (wanted == "auto" and device.type == "cuda")
    )


def _start_lora(config: RunConfig, model: MiniGPT4, start: StartWeights) -> None:
    if not start.lora:
        return
    if not config.lora.rank:
        raise WeightsError(
            f"the projector of {start.source} was trained together with LoRA, and needs it",
            fix="set lora.rank as it was there, and lora.alpha and lora.target_modules",
        )
    load_lora(model.language_model, start.lora, start.source)


def uniform_loss(model: MiniGPT4) -> float:
    """Loss of a model that finds all tokens equally likely: ln(vocabulary), in nats."""
    output_layer = model.language_model.get_output_embeddings()  # type: ignore[operator]
    return math.log(output_layer.weight.shape[0])


def build_step(
    config: RunConfig, model: MiniGPT4, projector: nn.Module, ranks: Ranks, device: torch.device
) -> TrainStep:
    """Optimizer, schedule and step as the configuration has them."""
    return TrainStep(
        model,
        projector,
        build_optimizer(trained_parameters(model), config.train),
        WarmupCosine.from_config(config.train),
        StepOptions(
            world_size=ranks.world_size,
            fp16=choose_precision(config.model.precision, device) == "fp16",
            loss_reduction=config.train.loss_reduction,
            max_grad_norm=config.train.max_grad_norm,
            num_passes=_most_passes(config, ranks.world_size) if model.sharded else 0,
        ),
        device=device,
    )


def _most_passes(config: RunConfig, world_size: int) -> int:
    """Micro-batches per step of the rank with most of them; slices differ by one sample."""
    largest_slice = math.ceil(config.train.global_batch_size / world_size)
    return math.ceil(largest_slice / config.train.micro_batch_size)

"""What is measured: a model and an endless stream of batches, from a shape's name or a config."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import torch

from bench.shapes import SHAPES
from bench.synthetic import synthetic_batches
from mgpt4_hpc.config.schema import TrainConfig
from mgpt4_hpc.data.batching.batch import Batch
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4, ModelOptions, build_model
from mgpt4_hpc.model.nn.random_weights import random_model

SEED = 0


@dataclass(frozen=True)
class Settings:
    """The command line's options, by their names there."""

    shape: str | None = None
    config_path: Path | None = None
    stage: int = 1
    device: str = "cpu"
    precision: str = "fp32"
    batch_size: int | None = None
    synthetic: bool = False
    baseline: str | None = None
    rounds: int = 5
    steps: int = 10
    warmup: int = 3
    attention: str = "packed"
    activation_checkpointing: float = 0.0
    compiled: bool = False
    cuda_graphs: bool = True
    cached_features: bool = False
    deterministic: bool = True
    threads: int = 0


@dataclass
class Subject:
    """A model, its batches and how it is trained.

    Attributes:
        model: on the device.
        llm: values of the language model's config.json.
        batches: each next one is this rank's micro-batches of one step.
        train: the optimizer's settings.
        stage: of the training.
        close: ends the data workers.
    """

    model: MiniGPT4
    llm: dict[str, Any]
    batches: Iterator[list[Batch]]
    train: TrainConfig
    stage: int
    close: Callable[[], None] = lambda: None


def build_subject(settings: Settings, ranks: Ranks, device: torch.device) -> Subject:
    """Random weights of a shape, or a config's own weights and shards."""
    if settings.shape is not None:
        return _from_shape(settings, ranks, device)
    return _from_config(settings, ranks, device)


def _from_shape(settings: Settings, ranks: Ranks, device: torch.device) -> Subject:
    assert settings.shape is not None
    shape = SHAPES[settings.shape]
    batch_size = settings.batch_size or shape.batch_size[settings.stage]
    torch.manual_seed(SEED)  # every rank makes the same weights
    model = random_model(
        shape.architecture,
        shape.llm,
        precision=settings.precision,
        attention=settings.attention,
        device=device,
        activation_checkpointing=settings.activation_checkpointing,
    )
    train = TrainConfig(
        global_batch_size=batch_size * ranks.world_size,
        micro_batch_size=batch_size,
        max_steps=100_000,
        lr=1e-4,
    )
    batches = _synthetic(settings.stage, batch_size, model, dict(shape.llm), ranks, device)
    return Subject(model, dict(shape.llm), batches, train, settings.stage)


def _from_config(settings: Settings, ranks: Ranks, device: torch.device) -> Subject:
    from mgpt4_hpc.config.load import load_config
    from mgpt4_hpc.data.sources.prepare import prepare_source
    from mgpt4_hpc.model.bundle.bundle import open_bundle
    from mgpt4_hpc.model.llm_files.check import check_llm
    from mgpt4_hpc.train.inputs.loaders import open_batches

    config = load_config(settings.config_path, overrides={"launch.gpus": ranks.world_size}).config
    bundle = open_bundle(config.model.weights)
    closers: list[Callable[[], None]] = []
    batches: Iterator[list[Batch]] | None = None
    if not settings.synthetic:
        work = tempfile.TemporaryDirectory(prefix="bench-train-")
        indexes = {
            source.name: str(
                prepare_source(
                    source.name,
                    source.path,
                    Path(source.index) if source.index else None,
                    Path(work.name),
                )
            )
            for source in config.data.sources
        }
        # Workers are forked before the device is used.
        opened = open_batches(config, indexes, bundle, ranks, 0)
        batches = iter(opened)
        closers += [opened.close, work.cleanup]
    model = build_model(
        bundle,
        ModelOptions(
            precision=settings.precision,
            attention=settings.attention,
            activation_checkpointing=settings.activation_checkpointing,
        ),
        device=device,
    )
    llm = check_llm(bundle.llm_dir).config
    if batches is None:
        size = settings.batch_size or config.train.micro_batch_size
        batches = _synthetic(config.stage, size, model, llm, ranks, device)

    def close() -> None:
        for closer in closers:
            closer()

    return Subject(model, dict(llm), batches, config.train, config.stage, close)


def _synthetic(
    stage: int,
    batch_size: int,
    model: MiniGPT4,
    llm: dict[str, Any],
    ranks: Ranks,
    device: torch.device,
) -> Iterator[list[Batch]]:
    batches = synthetic_batches(
        stage,
        batch_size,
        image_size=model.architecture.image_size,
        num_image_tokens=model.architecture.num_image_tokens,
        vocab_size=int(llm["vocab_size"]),
        pin=device.type == "cuda",
        seed=SEED + 1 + ranks.rank,
    )
    return ([batch] for batch in batches)


def open_device(settings: Settings, ranks: Ranks) -> torch.device:
    """The device of this rank.

    Raises:
        click.ClickException: if there is no such GPU.
    """
    if settings.device == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise click.ClickException("no CUDA device is visible; use --device cpu")
    device = torch.device("cuda", ranks.local_rank)
    torch.cuda.set_device(device)
    return device

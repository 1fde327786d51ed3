"""Loss and perplexity of each source on samples that the run never trained on."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from mgpt4_hpc.config.schema import SourceConfig
from mgpt4_hpc.data.batching.batch_builder import BatchMaker, InstructionChoice
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.index.index_file import is_index
from mgpt4_hpc.data.reading.reader import SampleReader
from mgpt4_hpc.data.sampling.order import SampleOrder, SourceSize
from mgpt4_hpc.data.sampling.sample_source import Draws, ValDraws, spread_ordinals
from mgpt4_hpc.data.sources.prepare import prepare_source
from mgpt4_hpc.errors import ConfigError, DataError
from mgpt4_hpc.model.generation.chat_model import ChatModel
from mgpt4_hpc.train.inputs.loaders import text_spec
from mgpt4_hpc.train.step import forward_loss


@dataclass(frozen=True)
class SourceLoss:
    """What a model loses on one source.

    Attributes:
        source: its name.
        num_samples, num_tokens: samples and answer tokens that were looked at.
        loss: mean cross entropy per answer token, in nats.
        left_out: samples that could not be used, with the reason.
    """

    source: str
    num_samples: int
    num_tokens: int
    loss: float
    left_out: tuple[str, ...] = ()

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)


class EverySample:
    """Draws all samples of one source in their order, for shards that were held out by hand."""

    def at(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        """(0, position) of each position."""
        return [(0, position) for position in positions]

    def substitute(self, source_id: int, position: int, attempt: int) -> int:
        """Never asked for: what cannot be used is left out here."""
        raise AssertionError("shards that were held out by hand have no substitutes")


def held_out_losses(
    chat_model: ChatModel,
    *,
    images: str | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    progress: Callable[[int], None] = lambda count: None,
) -> list[SourceLoss]:
    """The loss on what the run kept back of each source, or on other shards.

    Texts are laid out as the run's own settings say, in the order that its validation uses. A
    sample that cannot be used is left out: training puts another in its place, but here that one
    would count twice.

    Args:
        chat_model: with a source that has a run's settings.
        images: shards (or their index, or an aligned folder) never trained on; None takes
            the samples that ``data.val_fraction`` kept back.
        limit: samples per source at most, evenly spread.
        batch_size: samples per forward pass.
        progress: called with the size of each batch.

    Raises:
        ConfigError: if there is no run, or it kept nothing back and no shards are given.
        DataError: if shards cannot be read, or none of the samples can be used.
    """
    config = chat_model.source.config
    if config is None:
        raise ConfigError(
            "the loss suite needs a run: its settings say how texts become tokens",
            fix="give a run's directory or one of its checkpoints",
        )
    if images is None and not config.data.val_fraction:
        raise ConfigError(
            f"{chat_model.source.name} kept nothing back: data.val_fraction is 0",
            fix="give shards that it did not train on: --images SHARDS",
        )
    given = None
    if images is not None:
        index = images if is_index(Path(images)) else None
        given = (SourceConfig(name="given", path=images, index=index),)
    with tempfile.TemporaryDirectory(prefix="mgpt4-eval-") as work:
        return [
            _loss(chat_model, source, Path(work), given is not None, limit, batch_size, progress)
            for source in given or config.data.sources
        ]


@torch.no_grad()
def _loss(
    chat_model: ChatModel,
    source: SourceConfig,
    work: Path,
    every: bool,
    limit: int | None,
    batch_size: int,
    progress: Callable[[int], None],
) -> SourceLoss:
    config = chat_model.source.config
    assert config is not None
    known = Path(source.index) if source.index else None
    index = ShardIndex.open(prepare_source(source.name, source.path, known, work))
    draws: Draws
    if every:
        draws, available = EverySample(), index.num_samples
    else:
        # Which samples are held out depends on seed and source alone, so one source is enough.
        size = SourceSize(source.name, index.num_samples, source.weight)
        order = SampleOrder([size], seed=config.seed, val_fraction=config.data.val_fraction)
        draws, available = ValDraws(order), order.val_size(0)
    maker = BatchMaker(
        draws,
        SampleReader([index]),
        text_spec(config, chat_model.tokenizer, chat_model.bundle),
        chat_model.image_size,
        instructions=InstructionChoice(seed=config.seed, samples_per_step=batch_size),
        resize=config.data.resize,
    )
    used = available if limit is None else min(limit, available)
    loss_sum, num_tokens = 0.0, 0
    left_out: list[str] = []
    for start in range(0, used, batch_size):
        ordinals = range(start, min(start + batch_size, used))
        batch, bad = maker.without_substitutes(spread_ordinals(ordinals, available, used))
        left_out += [str(error) for error in bad.values()]
        if batch is not None:
            loss_sum += forward_loss(chat_model.model, batch, chat_model.model.device).item()
            num_tokens += batch.num_answer_tokens
        progress(len(ordinals))
    if used and len(left_out) == used:
        listed = "".join(f"\n  - {reason}" for reason in left_out[:5])
        raise DataError(f"none of the {used} samples of {source.name} can be used:{listed}")
    return SourceLoss(
        source.name,
        used - len(left_out),
        num_tokens,
        loss_sum / max(num_tokens, 1),
        tuple(left_out),
    )

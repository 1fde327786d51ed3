"""Positions to micro-batches: look up, read, decode, tokenize, assemble; substitute bad samples.

This is what a data worker runs. It is a pure function of the positions (as long as the files do
not change), so it does not matter which worker runs it, or how often.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from mgpt4_hpc.data.batch import Batch, Substitution, collate
from mgpt4_hpc.data.decode import ImageError, Pixels, Resize, decode_image
from mgpt4_hpc.data.order import SampleOrder, keyed_words
from mgpt4_hpc.data.reader import BadSampleError, RawSample, SampleReader
from mgpt4_hpc.data.text import TextSpec, build_sequence
from mgpt4_hpc.errors import DataError

MAX_SUBSTITUTES = 16
"""Bad samples in a row after which something larger than a sample is broken."""


class Draws(Protocol):
    """Which samples stand at positions, and what replaces them."""

    def at(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        """(source id, sample id) of each position."""

    def substitute(self, source_id: int, position: int, attempt: int) -> int:
        """Sample id of the ``attempt``-th replacement (1, 2, ...) at ``position``."""


class TrainDraws:
    """The training sequence."""

    def __init__(self, order: SampleOrder) -> None:
        self._order = order

    def at(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        """(source id, sample id) of each position."""
        source_ids, sample_ids = self._order.lookup(positions)
        return list(zip(source_ids.tolist(), sample_ids.tolist(), strict=True))

    def substitute(self, source_id: int, position: int, attempt: int) -> int:
        """A random trained-on sample of the same source."""
        return self._order.substitute(source_id, position, attempt)


class ValDraws:
    """All held-out samples, source by source; a position counts through them."""

    def __init__(self, order: SampleOrder) -> None:
        self._order = order
        self._sizes = [order.val_size(source) for source in range(len(order.sources))]

    def __len__(self) -> int:
        return sum(self._sizes)

    def at(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        """(source id, sample id) of each position."""
        return [self._find(position) for position in positions]

    def substitute(self, source_id: int, position: int, attempt: int) -> int:
        """A held-out sample further on, of the same source."""
        ordinal = position - sum(self._sizes[:source_id])
        following = (ordinal + attempt) % self._sizes[source_id]
        return int(self._order.lookup_val(source_id, [following])[0])

    def _find(self, position: int) -> tuple[int, int]:
        ordinal = position
        for source_id, size in enumerate(self._sizes):
            if ordinal < size:
                return source_id, int(self._order.lookup_val(source_id, [ordinal])[0])
            ordinal -= size
        raise IndexError(f"held-out sample {position}: there are {len(self)}")


class BatchMaker:
    """Builds the micro-batch of given positions.

    Args:
        draws: which samples stand there.
        reader: of their sources.
        text_spec: tokens and prompts.
        image_size: side in pixels.
        resize: see ``decode_image``.
        seed: of the choice of prompts.
        samples_per_step: positions that share a prompt under ``prompt_per="batch"``.
    """

    def __init__(
        self,
        draws: Draws,
        reader: SampleReader,
        text_spec: TextSpec,
        image_size: int,
        *,
        resize: Resize,
        seed: int,
        samples_per_step: int,
    ) -> None:
        self._draws = draws
        self._reader = reader
        self._text = text_spec
        self._image_size = image_size
        self._resize: Resize = resize
        self._seed = seed
        self._samples_per_step = samples_per_step

    def __call__(self, positions: Sequence[int]) -> Batch:
        """The micro-batch of ``positions``.

        Raises:
            DataError: if a sample and all its substitutes are bad.
        """
        size = self._image_size
        images_BCHW = np.empty((len(positions), 3, size, size), dtype=np.uint8)
        sequences, keys = [], []
        substitutions: list[Substitution] = []
        draws = self._draws.at(positions)
        for row, (position, draw) in enumerate(zip(positions, draws, strict=True)):
            sample = self._usable(position, draw, images_BCHW[row], substitutions)
            sequences.append(build_sequence(self._text, sample.caption, self.prompt_at(position)))
            keys.append(sample.key)
        return collate(
            images_BCHW,
            sequences,
            self._text.pad_id,
            keys=keys,
            positions=positions,
            substitutions=substitutions,
        )

    def close(self) -> None:
        """Close the shards that this process opened."""
        self._reader.close()

    def prompt_at(self, position: int) -> str | None:
        """The prompt drawn for a position: a pure function of (seed, position)."""
        prompts = self._text.prompts
        if not prompts:
            return None
        if len(prompts) == 1:
            return prompts[0]
        if self._text.prompt_per == "batch":
            word = keyed_words(1, self._seed, "prompt of step", position // self._samples_per_step)
        else:
            word = keyed_words(1, self._seed, "prompt", position)
        return prompts[int(word[0]) % len(prompts)]

    def _usable(
        self,
        position: int,
        draw: tuple[int, int],
        pixels_CHW: Pixels,
        substitutions: list[Substitution],
    ) -> RawSample:
        """The sample at ``position``, or its substitute; its pixels are written to the array."""
        source_id, sample_id = draw
        bad: list[BadSampleError] = []
        for attempt in range(1, MAX_SUBSTITUTES + 2):
            try:
                sample = self._decoded(source_id, sample_id, pixels_CHW)
            except BadSampleError as error:
                bad.append(error)
                sample_id = self._draws.substitute(source_id, position, attempt)
                continue
            substitutions += [
                Substitution(position, error.key, f"{error.shard}: {error.reason}", sample.key)
                for error in bad
            ]
            return sample
        listed = "".join(f"\n  - {error}" for error in bad)
        raise DataError(
            f"the sample at position {position} and {MAX_SUBSTITUTES} substitutes are bad:{listed}",
            why="so many in a row mean that shards are gone or replaced, not that samples are bad",
            fix="see that the shards are where the index says; after changes run mgpt4 data index",
        )

    def _decoded(self, source_id: int, sample_id: int, pixels_CHW: Pixels) -> RawSample:
        sample = self._reader.read(source_id, sample_id)
        try:
            decode_image(sample.jpg, self._image_size, self._resize, out=pixels_CHW)
        except ImageError as error:
            shard = self._reader.shard_path(source_id, sample_id)
            raise BadSampleError(sample.key, shard, str(error)) from None
        return sample

"""Positions to micro-batches: look up, read, decode, tokenize, assemble; substitute bad samples.

This is what a data worker runs. It is a pure function of the positions (as long as the files do
not change), so it does not matter which worker runs it, or how often.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mgpt4_hpc.data.batching.batch import Batch, Substitution, collate
from mgpt4_hpc.data.batching.text import TextSpec, TokenSequence, TooLongError, build_sequence
from mgpt4_hpc.data.images.decode import ImageError, Pixels, Resize, decode_image
from mgpt4_hpc.data.reading.feature_cache_reader import FeatureReader
from mgpt4_hpc.data.reading.reader import BadSampleError, RawSample
from mgpt4_hpc.data.sampling.order import keyed_words
from mgpt4_hpc.data.sampling.sample_source import MAX_SUBSTITUTES, Draws
from mgpt4_hpc.errors import DataError, StorageTrouble


class Reads(Protocol):
    """Where samples come from; ``SampleReader`` says what its methods do."""

    def read(self, source_id: int, sample_id: int) -> RawSample:
        """One sample."""

    def shard_path(self, source_id: int, sample_id: int) -> Path:
        """The shard that holds a sample."""

    def close(self) -> None:
        """Close what is open."""


@dataclass(frozen=True)
class InstructionChoice:
    """Which instruction stands before a sample's text.

    Attributes:
        seed: of the choice.
        samples_per_step: positions that share an instruction under ``prompt_per="batch"``.
    """

    seed: int
    samples_per_step: int


class BatchMaker:
    """Builds the micro-batch of given positions.

    Args:
        draws: which samples stand there.
        reader: of their sources.
        text_spec: tokens and instructions.
        image_size: side in pixels.
        resize: see ``decode_image``.
        instructions: how they are chosen.
        features: encoded images, which stand in for the reader and its images.
    """

    def __init__(
        self,
        draws: Draws,
        reader: Reads,
        text_spec: TextSpec,
        image_size: int,
        *,
        resize: Resize,
        instructions: InstructionChoice,
        features: FeatureReader | None = None,
    ) -> None:
        self._draws = draws
        self._reader = reader
        self._text = text_spec
        self._image_size = image_size
        self._resize: Resize = resize
        self._instructions = instructions
        self._features = features

    def __call__(self, positions: Sequence[int]) -> Batch:
        """The micro-batch of ``positions``.

        Raises:
            DataError: if a sample and all its substitutes are bad.
            StorageTrouble: if shards cannot be read just now, or all of these are gone.
        """
        substitutions: list[Substitution] = []
        samples = [
            self._usable(position, draw, substitutions)
            for position, draw in zip(positions, self._draws.at(positions), strict=True)
        ]
        return self._batch(positions, samples, substitutions)

    def without_substitutes(
        self, positions: Sequence[int]
    ) -> tuple[Batch | None, dict[int, BadSampleError]]:
        """The batch of the positions with usable samples, if any; and the faults of the others.

        Raises:
            StorageTrouble: if shards cannot be read just now.
        """
        samples: dict[int, _Ready] = {}
        bad: dict[int, BadSampleError] = {}
        for position, draw in zip(positions, self._draws.at(positions), strict=True):
            try:
                samples[position] = self._read(position, *draw)
            except BadSampleError as error:
                bad[position] = error
        if not samples:
            return None, bad
        return self._batch(list(samples), list(samples.values()), []), bad

    def _batch(
        self,
        positions: Sequence[int],
        samples: Sequence[_Ready],
        substitutions: Sequence[Substitution],
    ) -> Batch:
        return collate(
            np.concatenate([sample.pictures for sample in samples]),
            [sample.sequence for sample in samples],
            self._text.pad_id,
            keys=[sample.key for sample in samples],
            positions=positions,
            substitutions=substitutions,
        )

    def close(self) -> None:
        """Close the shards that this process opened."""
        self._reader.close()
        if self._features is not None:
            self._features.close()

    def instruction_at(self, position: int) -> str | None:
        """The instruction drawn for a position: a pure function of (seed, position)."""
        instructions = self._text.instructions
        if not instructions:
            return None
        if len(instructions) == 1:
            return instructions[0]
        if self._text.prompt_per == "batch":
            word = keyed_words(
                1,
                self._instructions.seed,
                "prompt of step",
                position // self._instructions.samples_per_step,
            )
        else:
            word = keyed_words(1, self._instructions.seed, "prompt", position)
        return instructions[int(word[0]) % len(instructions)]

    def _usable(
        self,
        position: int,
        draw: tuple[int, int],
        substitutions: list[Substitution],
    ) -> _Ready:
        """The sample at ``position``, or its substitute."""
        source_id, sample_id = draw
        bad: list[BadSampleError] = []
        for attempt in range(1, MAX_SUBSTITUTES + 2):
            try:
                sample = self._read(position, source_id, sample_id)
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
        what = f"the sample at position {position} and {MAX_SUBSTITUTES} substitutes are bad:"
        if all(error.errno == errno.ENOENT for error in bad):
            raise StorageTrouble(
                what + listed,
                why="so many shards are gone at once where a mount is, which may come back",
                fix="the job comes back by itself; see that the shards are where the index says",
            )
        raise DataError(
            what + listed,
            why="so many in a row mean that shards are gone or replaced, not that samples are bad",
            fix="see that the shards are where the index says; after changes run mgpt4 data index",
        )

    def _read(self, position: int, source_id: int, sample_id: int) -> _Ready:
        pictures = None
        if self._features is not None:
            sample, pictures = self._features.read(source_id, sample_id)
        else:
            sample = self._reader.read(source_id, sample_id)
        try:
            sequence = build_sequence(self._text, sample.text, self.instruction_at(position))
            # A conversation that was cut needs its first images only, and a caption one.
            count = sequence.num_images
            if pictures is None:
                pictures = decode_images(sample.images[:count], self._image_size, self._resize)
        except (TooLongError, ImageError) as error:
            raise BadSampleError(
                sample.key, self._shard(source_id, sample_id), str(error)
            ) from None
        return _Ready(sample.key, sequence, pictures[:count])

    def _shard(self, source_id: int, sample_id: int) -> Path:
        if self._features is not None:
            return self._features.cache.folder
        return self._reader.shard_path(source_id, sample_id)


@dataclass(frozen=True, slots=True)
class _Ready:
    """A sample as it goes into a batch; its N images as pixels (N, C, H, W), or as features."""

    key: str
    sequence: TokenSequence
    pictures: NDArray[Any]


def decode_images(images: Sequence[bytes], size: int, resize: Resize) -> Pixels:
    """Pixels uint8 (N, 3, size, size) of N compressed images. Raises ImageError."""
    pixels_NCHW = np.empty((len(images), 3, size, size), dtype=np.uint8)
    for data, pixels_CHW in zip(images, pixels_NCHW, strict=True):
        decode_image(data, size, resize, out=pixels_CHW)
    return pixels_NCHW

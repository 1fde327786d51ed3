"""The order in which samples are drawn: a pure function of (seed, source, position).

A *position* counts the samples of the whole run, over all ranks, from 0. Nothing else is needed
to know which sample stands there, so the state of the data pipeline is one integer, and any
number of ranks or workers, however often interrupted, draws the same sequence.

From position to sample, in closed form:

1. **Mixing.** Draws come in cycles of ``sum(weights)``; within each cycle every source has exactly
   ``weight`` draws, spread as evenly as possible (largest deficit first), in a fixed pattern.
   With ``granularity`` g one draw is g consecutive samples of its source.
2. **Epoch.** The n-th sample drawn from a source of N trained-on samples belongs to its epoch
   n // N. Each source has its own epochs.
3. **Blocks.** A source is cut into blocks of up to 256 neighbouring samples, which an epoch
   permutes.
4. **Windows.** The samples of 16,384 / block-size consecutive permuted blocks are permuted among
   themselves, so that reads stay within a window while the order is as random as one needs.

Permutations come from the raw Philox stream, whose values NumPy guarantees for ever, not from
``Generator.permutation``, whose algorithm may change between NumPy versions.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray

from mgpt4_hpc.errors import ConfigError

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
K = TypeVar("K")
V = TypeVar("V")

ORDER_VERSION = 1
"""Raised when the same seed starts to mean another order: old runs then refuse to go on."""

MAX_BLOCK_SAMPLES = 256
WINDOW_SAMPLES = 16_384
_MAX_CYCLE = 100_000
_CACHED_WINDOWS = 4
_CACHED_EPOCHS = 2


@dataclass(frozen=True)
class SourceSize:
    """One dataset as the order sees it.

    Attributes:
        name: enters the random keys, so that adding a source leaves the others' order alone.
        num_samples: samples in its index.
        weight: draws per cycle, a whole number (LAION : CC_SBU is 115 : 14).
    """

    name: str
    num_samples: int
    weight: int = 1


def keyed_words(num_words: int, *key: object) -> NDArray[np.uint64]:
    """``num_words`` random 64-bit words that depend on ``key`` alone."""
    text = "\x1f".join(str(part) for part in key)
    digest = hashlib.blake2b(text.encode(), digest_size=16, person=b"mgpt4-order").digest()
    philox = Philox(key=np.frombuffer(digest, dtype="<u8").astype(np.uint64))
    return np.asarray(philox.random_raw(num_words), dtype=np.uint64)


def keyed_permutation(size: int, *key: object) -> Int64:
    """A permutation of ``range(size)`` that depends on ``key`` alone."""
    words, mask = _numbered_words(size, key)
    words.sort()
    return (words & mask).astype(np.int64)


def keyed_choice(size: int, count: int, *key: object) -> Int64:
    """``count`` elements of ``range(size)``, ascending: the first of ``keyed_permutation``."""
    words, mask = _numbered_words(size, key)
    if count < size:
        words.partition(count)
    return np.sort((words[:count] & mask).astype(np.int64))


def _numbered_words(size: int, key: tuple[object, ...]) -> tuple[NDArray[np.uint64], np.uint64]:
    """Random words with their own numbers in the low bits, and the mask of those bits.

    So all are distinct, and no sorting algorithm can change the order in which they come out.
    """
    bits = np.uint64(max(1, (size - 1).bit_length()))
    mask = (np.uint64(1) << bits) - np.uint64(1)
    words = keyed_words(size, *key)
    words &= ~mask
    words |= np.arange(size, dtype=np.uint64)
    return words, mask


def mixing_pattern(weights: Sequence[int]) -> Int32:
    """Source of each draw of a cycle: int32[sum(weights)], source s exactly weights[s] times.

    Each draw goes to the source that lags furthest behind its share (the first on a tie).
    """
    total = sum(weights)
    share = np.asarray(weights, dtype=np.int64)
    credit = np.zeros(len(weights), dtype=np.int64)
    pattern = np.empty(total, dtype=np.int32)
    for draw in range(total):
        credit += share
        chosen = int(np.argmax(credit))
        credit[chosen] -= total
        pattern[draw] = chosen
    return pattern


class SampleOrder:
    """Which sample stands at which position, for training and for validation.

    Args:
        sources: what is mixed; the position in this list is the source id.
        seed: of the permutations.
        granularity: consecutive samples taken from one source per draw.
        val_fraction: share of each source's blocks that is held out: never trained on, read by
            validation. Which blocks these are depends on the source alone, not on the seed, so
            that runs with different seeds are compared on the same samples.

    Raises:
        ConfigError: for every impossible setting at once.
    """

    def __init__(
        self,
        sources: Sequence[SourceSize],
        seed: int,
        granularity: int = 1,
        val_fraction: float = 0.0,
    ) -> None:
        _check(sources, granularity, val_fraction)
        self.sources = tuple(sources)
        self.seed = int(seed)
        self.granularity = int(granularity)
        self.val_fraction = float(val_fraction)
        self._parts = [_SourceOrder(source, self.seed, self.val_fraction) for source in sources]
        empty = [part.source.name for part in self._parts if part.num_train == 0]
        if empty:
            raise ConfigError(
                f"data.val_fraction {val_fraction} leaves nothing to train on in "
                f"{', '.join(empty)}",
                fix="lower it",
            )
        divisor = math.gcd(*(source.weight for source in sources))
        weights = [source.weight // divisor for source in sources]
        pattern = mixing_pattern(weights)
        self._cycle = len(pattern)
        self._pattern = pattern
        self._weights = np.asarray(weights, dtype=np.int64)
        # _before[t] = how many draws of the cycle's own source come before draw t.
        self._before = np.zeros(self._cycle, dtype=np.int64)
        for source_id in range(len(weights)):
            of_source = pattern == source_id
            self._before[of_source] = np.arange(int(of_source.sum()))

    @property
    def digest(self) -> str:
        """Hex digest of all that defines the order; equal digests draw the same sequence."""
        parts = [ORDER_VERSION, self.seed, self.granularity, self.val_fraction]
        for source in self.sources:
            parts += [source.name, source.num_samples, source.weight]  # type: ignore[list-item]
        text = "\x1f".join(repr(part) for part in parts)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def lookup(self, positions: Int64 | Sequence[int]) -> tuple[Int32, Int64]:
        """The samples at ``positions`` (each >= 0, any order): (source ids, sample ids).

        A sample id counts from 0 within its source's index.
        """
        where = np.asarray(positions, dtype=np.int64)
        if where.size and int(where.min()) < 0:
            raise ValueError(f"position {int(where.min())} is negative")
        draw, within = np.divmod(where, self.granularity)
        cycle, slot = np.divmod(draw, self._cycle)
        source_ids = self._pattern[slot]
        ordinals = (cycle * self._weights[source_ids] + self._before[slot]) * self.granularity
        ordinals += within
        sample_ids = np.empty(where.shape, dtype=np.int64)
        for source_id in np.unique(source_ids):
            of_source = source_ids == source_id
            sample_ids[of_source] = self._parts[source_id].at(ordinals[of_source])
        return source_ids, sample_ids

    def substitute(self, source_id: int, position: int, attempt: int) -> int:
        """Sample id to use when that at ``position`` cannot be read; attempt 1, 2, ...

        A random trained-on sample of the same source: a pure function of its arguments, so that
        every rank, worker and rerun chooses the same.
        """
        part = self._parts[source_id]
        word = keyed_words(1, self.seed, part.source.name, "substitute", position, attempt)[0]
        return int(part.train_ids(np.asarray([int(word) % part.num_train], dtype=np.int64))[0])

    def substitute_val(self, source_id: int, position: int, attempt: int) -> int:
        """The same for a held-out sample: a random held-out one, seldom of the same shard."""
        part = self._parts[source_id]
        name = part.source.name
        word = keyed_words(1, self.seed, name, "val substitute", position, attempt)[0]
        return int(part.val_ids(np.asarray([int(word) % part.num_val], dtype=np.int64))[0])

    def num_train(self, source_id: int) -> int:
        """Samples per epoch of a source: all but the held-out ones."""
        return self._parts[source_id].num_train

    def val_size(self, source_id: int) -> int:
        """Held-out samples of a source."""
        return self._parts[source_id].num_val

    def lookup_val(self, source_id: int, ordinals: Int64 | Sequence[int]) -> Int64:
        """Sample ids of a source's held-out samples number ``ordinals``, in storage order."""
        return self._parts[source_id].val_ids(np.asarray(ordinals, dtype=np.int64))


class _SourceOrder:
    """Blocks, epochs and windows of one source."""

    def __init__(self, source: SourceSize, seed: int, val_fraction: float) -> None:
        self.source = source
        self.seed = seed
        self.block = block_samples(source.num_samples)
        self.window_blocks = WINDOW_SAMPLES // self.block
        num_blocks = -(-source.num_samples // self.block)
        num_held = 0
        if val_fraction > 0:
            num_held = max(1, round(val_fraction * num_blocks))
        self._held = keyed_choice(num_blocks, num_held, source.name, "held-out")
        trained_on = np.ones(num_blocks, dtype=np.bool_)
        trained_on[self._held] = False
        self._train = np.flatnonzero(trained_on)
        # Only the source's last block can be short; it is in one of the two parts.
        short = num_blocks * self.block - source.num_samples
        last_held = num_held > 0 and self._held[-1] == num_blocks - 1
        self._deficit = 0 if last_held else short
        self.num_val = num_held * self.block - (short if last_held else 0)
        self.num_train = source.num_samples - self.num_val
        self._epochs: OrderedDict[int, tuple[Int64, int]] = OrderedDict()
        self._windows: OrderedDict[tuple[int, int], Int64] = OrderedDict()

    def at(self, ordinals: Int64) -> Int64:
        """Sample ids of the source's draws number ``ordinals``."""
        epochs, offsets = np.divmod(ordinals, self.num_train)
        result = np.empty(ordinals.shape, dtype=np.int64)
        for epoch in np.unique(epochs):
            in_epoch = np.flatnonzero(epochs == epoch)
            result[in_epoch] = self._at_epoch(int(epoch), offsets[in_epoch])
        return result

    def _at_epoch(self, epoch: int, offsets: Int64) -> Int64:
        _, short_at = self._blocks(epoch)
        size = self.window_blocks * self.block
        windows = offsets // size
        # The short block shifts all later windows to the left by less than one window.
        windows += offsets >= self._window_start(windows + 1, short_at)
        starts = self._window_start(windows, short_at)
        result = np.empty(offsets.shape, dtype=np.int64)
        for window in np.unique(windows):
            in_window = windows == window
            result[in_window] = self._window(epoch, int(window))[(offsets - starts)[in_window]]
        return result

    def _window_start(self, windows: Int64, short_at: int) -> Int64:
        blocks_before = windows * self.window_blocks
        return blocks_before * self.block - np.where(blocks_before > short_at, self._deficit, 0)

    def _blocks(self, epoch: int) -> tuple[Int64, int]:
        """The epoch's permuted blocks, and where among them the short one stands."""
        epoch_blocks = self._epochs.get(epoch)
        if epoch_blocks is None:
            shuffled = keyed_permutation(
                len(self._train), self.seed, self.source.name, "blocks", epoch
            )
            blocks = self._train[shuffled]
            short_at = int(np.argmax(shuffled))  # the short block is the part's last one
            epoch_blocks = (blocks, short_at)
            _remember(self._epochs, epoch, epoch_blocks, _CACHED_EPOCHS)
        return epoch_blocks

    def _window(self, epoch: int, window: int) -> Int64:
        """Sample ids of one window, permuted."""
        samples = self._windows.get((epoch, window))
        if samples is None:
            blocks, _ = self._blocks(epoch)
            own_blocks = blocks[window * self.window_blocks : (window + 1) * self.window_blocks]
            ids = self._samples(own_blocks)
            shuffled = keyed_permutation(
                len(ids), self.seed, self.source.name, "window", epoch, window
            )
            samples = ids[shuffled]
            _remember(self._windows, (epoch, window), samples, _CACHED_WINDOWS)
        return samples

    def _samples(self, blocks: Int64) -> Int64:
        ids = (blocks[:, None] * self.block + np.arange(self.block)).reshape(-1)
        return ids[ids < self.source.num_samples]

    def train_ids(self, ordinals: Int64) -> Int64:
        """Trained-on samples number ``ordinals`` in storage order."""
        return self._train[ordinals // self.block] * self.block + ordinals % self.block

    def val_ids(self, ordinals: Int64) -> Int64:
        """Held-out samples number ``ordinals`` in storage order."""
        return self._held[ordinals // self.block] * self.block + ordinals % self.block


def block_samples(num_samples: int) -> int:
    """Samples per block: 256 for large sources, fewer where that would leave under 256 blocks.

    A power of two. Small sources need small blocks so that a held-out part of a few per cent
    exists and is spread over the whole source.
    """
    block = MAX_BLOCK_SAMPLES
    while block > 1 and num_samples < block * 256:
        block //= 2
    return block


def _remember(cache: OrderedDict[K, V], key: K, value: V, limit: int) -> None:
    cache[key] = value
    while len(cache) > limit:
        cache.popitem(last=False)


def _check(sources: Sequence[SourceSize], granularity: int, val_fraction: float) -> None:
    faults = []
    if not sources:
        faults.append("no source is given")
    names = [source.name for source in sources]
    for name in sorted({name for name in names if names.count(name) > 1}):
        faults.append(f"the source name {name!r} is used twice")
    for source in sources:
        if source.num_samples < 1:
            faults.append(f"source {source.name!r} has {source.num_samples} samples")
        if source.weight < 1:
            faults.append(
                f"source {source.name!r} has weight {source.weight}; it must be 1 or more"
            )
    weights = [source.weight for source in sources]
    cycle = sum(weights) // max(1, math.gcd(*weights))
    if cycle > _MAX_CYCLE:
        faults.append(f"the weights add up to a cycle of {cycle} draws; {_MAX_CYCLE} is the most")
    if granularity < 1:
        faults.append(f"granularity is {granularity}; it must be 1 or more")
    if not 0.0 <= val_fraction < 1.0:
        faults.append(f"data.val_fraction is {val_fraction}; it must be at least 0 and below 1")
    if faults:
        raise ConfigError("the samples cannot be put in order", faults=faults)

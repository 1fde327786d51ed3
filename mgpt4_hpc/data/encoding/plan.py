"""Which samples a run will consume: what has to be encoded, and whether a cache has it all."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.reading.feature_cache import FeatureCache
from mgpt4_hpc.data.sampling.order import SampleOrder, SourceSize
from mgpt4_hpc.data.sampling.sample_source import (
    MAX_SUBSTITUTES,
    Draws,
    TrainDraws,
    ValDraws,
    spread_ordinals,
)

_CHUNK = 1 << 18
_SHIFT = 40

Int64 = NDArray[np.int64]


def sample_order(config: RunConfig, indexes: Sequence[ShardIndex]) -> SampleOrder:
    """Which sample stands where in this run; ``indexes`` are its sources'."""
    return SampleOrder(
        [
            SourceSize(source.name, index.num_samples, source.weight)
            for source, index in zip(config.data.sources, indexes, strict=True)
        ],
        seed=config.seed,
        granularity=config.data.granularity,
        val_fraction=config.data.val_fraction,
    )


@dataclass(frozen=True)
class EncodePlan:
    """The distinct samples of a run, numbered in the order in which it first needs them.

    In that order a longer run begins with what a shorter one needed, and training reads a cache
    nearly from front to back.

    Attributes:
        source, sample: source id and sample id of each.
        order: the run's.
        row_of_use: the sample that each use needs; uses are the training positions 0, 1, ...
            followed by the held-out samples of an evaluation.
        num_positions: training positions among the uses.
        held_out: ordinals of the held-out samples, see ``ValDraws``.
    """

    source: Int64
    sample: Int64
    order: SampleOrder
    row_of_use: Int64
    num_positions: int
    held_out: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.sample)

    def uses(self, rows: Sequence[int] | Int64) -> list[tuple[int, Draws, int]]:
        """Where samples are needed: the row, the draws and the position in them."""
        train, val = TrainDraws(self.order), ValDraws(self.order)
        return [
            (int(self.row_of_use[use]), train, use)
            if use < self.num_positions
            else (int(self.row_of_use[use]), val, self.held_out[use - self.num_positions])
            for use in np.flatnonzero(np.isin(self.row_of_use, rows)).tolist()
        ]

    def has(self, source_id: int, sample_id: int) -> bool:
        """Whether a sample is in the plan by its own right, and not as a substitute."""
        key = (source_id << _SHIFT) + sample_id
        place = int(np.searchsorted(self._sorted_keys, key))
        return place < len(self._sorted_keys) and int(self._sorted_keys[place]) == key

    @cached_property
    def _sorted_keys(self) -> Int64:
        return np.sort((self.source << _SHIFT) + self.sample)

    def rows_in(self, cache: FeatureCache) -> NDArray[np.bool_]:
        """Which of the samples a cache has, or knows to be bad."""
        numbers = np.asarray(self._numbers_in(cache), np.int64)[self.source]
        known = cache.rows_of(numbers, self.sample) >= 0
        return known | cache.are_bad(numbers, self.sample)

    def rows_done(self, cache: FeatureCache) -> NDArray[np.bool_]:
        """Which of the samples need no encoding: of bad ones, those with all their substitutes.

        A bad sample has another one at each position, and so needs more of them in a longer run.
        """
        numbers = self._numbers_in(cache)

        def state(source_id: int, sample_id: int) -> bool | None:
            """True for good and planned samples, False for bad ones, None for unknown ones."""
            known = cache.state(numbers[source_id], sample_id)
            return True if known is None and self.has(source_id, sample_id) else known

        done = self.rows_in(cache)
        for row, *_ in _lacking(self, self.bad_rows(cache), state):
            done[row] = False
        return done

    def bad_rows(self, cache: FeatureCache) -> Int64:
        """The samples that a cache knows to be bad."""
        numbers = np.asarray(self._numbers_in(cache), np.int64)[self.source]
        rows: Int64 = np.flatnonzero(cache.are_bad(numbers, self.sample))
        return rows

    def _numbers_in(self, cache: FeatureCache) -> list[int]:
        return cache.source_numbers([source.name for source in self.order.sources])


def plan_encoding(config: RunConfig, order: SampleOrder) -> EncodePlan:
    """The samples of all steps of a run, and of its evaluations."""
    num_positions = config.train.max_steps * config.train.global_batch_size
    parts = []
    for start in range(0, num_positions, _CHUNK):
        sources, samples = order.lookup(np.arange(start, min(start + _CHUNK, num_positions)))
        parts.append((sources.astype(np.int64) << _SHIFT) + samples)
    held_out: tuple[int, ...] = ()
    if config.train.eval_every_steps:
        draws = ValDraws(order)
        used = min(len(draws), config.train.eval_samples)
        held_out = tuple(spread_ordinals(range(used), len(draws), used))
        drawn = np.asarray(draws.at(held_out), np.int64).reshape(-1, 2)
        parts.append((drawn[:, 0] << _SHIFT) + drawn[:, 1])
    uses = np.concatenate(parts)
    distinct, first, inverse = np.unique(uses, return_index=True, return_inverse=True)
    by_first_use = np.argsort(first)
    rank = np.empty(len(distinct), np.int64)
    rank[by_first_use] = np.arange(len(distinct))
    keys = distinct[by_first_use]
    return EncodePlan(
        keys >> _SHIFT, keys & ((1 << _SHIFT) - 1), order, rank[inverse], num_positions, held_out
    )


def missing_from(plan: EncodePlan, cache: FeatureCache) -> int:
    """Samples that a run will ask a cache for in vain, substitutes of bad ones included."""
    missing = int((~plan.rows_in(cache)).sum())
    numbers = plan._numbers_in(cache)
    unknown = substitutes(
        plan,
        plan.bad_rows(cache),
        lambda source_id, sample_id: cache.state(numbers[source_id], sample_id),
    )
    return missing + len(unknown)


def substitutes(
    plan: EncodePlan, rows: Sequence[int] | Int64, state: Callable[[int, int], bool | None]
) -> list[tuple[int, int]]:
    """(source id, sample id) of what stands in for bad samples and is not known yet.

    Args:
        plan: of the run.
        rows: of the bad samples.
        state: of (source id, sample id): True if it is usable and in the cache, False if it is
            bad, None if it is unknown. Asked again for a sample after it was returned: if
            it has become known meanwhile, the next substitute is taken.
    """
    return [(source_id, sample_id) for _, source_id, sample_id in _lacking(plan, rows, state)]


def _lacking(
    plan: EncodePlan, rows: Sequence[int] | Int64, state: Callable[[int, int], bool | None]
) -> Iterator[tuple[int, int, int]]:
    """What ``substitutes`` returns, with the row of the bad sample before each."""
    for row, draws, position in plan.uses(rows):
        source_id = int(plan.source[row])
        for attempt in range(1, MAX_SUBSTITUTES + 1):
            sample_id = draws.substitute(source_id, position, attempt)
            known = state(source_id, sample_id)
            if known is None:
                yield row, source_id, sample_id
            if known is not False:
                break


def shard_name(number: int, plan: EncodePlan, rows: Sequence[int] | Int64, names: list[str]) -> str:
    """File name of a shard: its place in the plan, for which run, and which samples it has.

    For another run the same bad sample may have other substitutes, which must not take the place
    of the first one's.
    """
    digest = hashlib.blake2b(digest_size=6)
    digest.update(f"{plan.order.digest}\0{plan.num_positions}\0{plan.held_out}\0".encode())
    for source_id, sample_id in zip(plan.source[rows], plan.sample[rows], strict=True):
        digest.update(f"{names[source_id]}\0{sample_id}\0".encode())
    return f"{number:05d}-{digest.hexdigest()}.safetensors"


def part_of(count: int, part: int, parts: int) -> range:
    """Part ``part`` of 1 ... ``parts`` of ``range(count)``: neighbours, in equal shares."""
    return range((part - 1) * count // parts, part * count // parts)

"""Endless optimizer steps for training, and passes over the held-out samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from mgpt4_hpc.data.batching.batch import Batch, Substitution
from mgpt4_hpc.data.batching.batch_builder import BatchMaker, InstructionChoice
from mgpt4_hpc.data.batching.text import TextSpec
from mgpt4_hpc.data.batching.worker_stream import PREFETCH, BatchStream
from mgpt4_hpc.data.images.decode import Resize
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.reading.feature_cache_reader import FeatureReader
from mgpt4_hpc.data.reading.local_copies import Staged
from mgpt4_hpc.data.reading.reader import SampleReader
from mgpt4_hpc.data.sampling.order import SampleOrder
from mgpt4_hpc.data.sampling.sample_source import TrainDraws, ValDraws, spread_ordinals
from mgpt4_hpc.errors import ConfigError, DataError

_LISTED = 20
_MIN_JUDGED = 1000
"""Samples below which the share of bad ones says nothing yet."""


def rank_slice(global_batch_size: int, rank: int, world_size: int) -> tuple[int, int]:
    """The part of each global batch that a rank takes: begin and end, sizes differing by <= 1."""
    return (
        rank * global_batch_size // world_size,
        (rank + 1) * global_batch_size // world_size,
    )


def step_positions(
    start: int, global_batch_size: int, micro_batch_size: int, rank: int, world_size: int
) -> list[list[int]]:
    """One rank's micro-batches of the step that begins at position ``start``."""
    low, high = rank_slice(global_batch_size, rank, world_size)
    return [
        list(range(start + begin, start + min(begin + micro_batch_size, high)))
        for begin in range(low, high, micro_batch_size)
    ]


@dataclass(frozen=True, kw_only=True)
class LoaderOptions:
    """How batches are cut, and how they are prepared.

    Attributes:
        micro_batch_size: samples per forward pass, at most.
        global_batch_size: samples per optimizer step over all ranks; not for validation.
        rank, world_size: which slice of each global batch is ours.
        num_workers: processes that prepare micro-batches; 0 does it in this process.
        start_position: first position, normally the checkpoint's ``samples_seen``.
        seed: of the choice of prompts.
        max_bad_fraction: share of substituted samples past which the run stops.
        resize: see ``decode_image``.
        prefetch: micro-batches prepared ahead by each worker.
        pin_memory: by default where CUDA is available.
        give_up: called while storage keeps a worker's batch from coming: whether to stop waiting.
    """

    micro_batch_size: int
    global_batch_size: int = 0
    rank: int = 0
    world_size: int = 1
    num_workers: int = 0
    start_position: int = 0
    seed: int = 0
    max_bad_fraction: float = 0.01
    resize: Resize = "squash"
    prefetch: int = PREFETCH
    pin_memory: bool | None = None
    give_up: Callable[[], bool] = lambda: False


def make_stream(
    maker: BatchMaker,
    batches: Callable[[], Iterator[list[int]]],
    options: LoaderOptions,
    *,
    again: bool = False,
) -> BatchStream[Batch]:
    """The stream of the batches of these positions; ``again``: it can be rewound."""
    return BatchStream(
        maker,
        batches,
        options.num_workers,
        options.prefetch,
        options.pin_memory,
        again=again,
        give_up=options.give_up,
    )


class StepLoader:
    """One rank's micro-batches of one optimizer step after another, for ever.

    The global sequence depends on the order alone: not on ranks, workers or interruptions. Step k
    of a run consumes positions [k G, (k+1) G) for a global batch of G; resuming at any position
    costs milliseconds.

    Args:
        order: which sample stands at which position.
        indexes: of the order's sources, in the same order.
        text_spec: tokens and prompts.
        image_size: side in pixels.
        options: sizes, slice and workers.
        features: encoded images, read in place of the shards.
        staged: copies of shards on this node, tried first.

    Raises:
        ConfigError: if the settings do not fit each other.
    """

    def __init__(
        self,
        order: SampleOrder,
        indexes: Sequence[ShardIndex],
        text_spec: TextSpec,
        image_size: int,
        options: LoaderOptions,
        *,
        features: FeatureReader | None = None,
        staged: Staged | None = None,
    ) -> None:
        _check_sources(order, indexes)
        maker = BatchMaker(
            TrainDraws(order),
            SampleReader(indexes, staged=staged),
            text_spec,
            image_size,
            resize=options.resize,
            instructions=InstructionChoice(options.seed, options.global_batch_size),
            features=features,
        )
        self._set_up(maker, options)

    def _set_up(self, maker: BatchMaker, options: LoaderOptions) -> None:
        """What every loader has, wherever its samples come from."""
        _check_sizes(options)
        self._step_shape = (
            options.global_batch_size,
            options.micro_batch_size,
            options.rank,
            options.world_size,
        )
        self._position = options.start_position
        self._max_bad_fraction = options.max_bad_fraction
        self._num_seen = 0
        self._bad: list[Substitution] = []
        self._stream = make_stream(maker, self._micro_batches, options)

    @property
    def position(self) -> int:
        """First position of the step that comes next: the whole state of the pipeline."""
        return self._position

    def start(self) -> None:
        """Fork the workers now and let them prepare the first steps."""
        self._stream.start()

    def __iter__(self) -> Iterator[list[Batch]]:
        return self

    def __next__(self) -> list[Batch]:
        """The next step's micro-batches.

        Raises:
            DataError: if too many samples are bad, or a worker died.
            StorageTrouble: if shards cannot be read just now.
            StillWaiting: if ``give_up`` said so; no step can be had any more.
        """
        batches = [next(self._stream) for _ in step_positions(0, *self._step_shape)]
        self._position += self._step_shape[0]
        for batch in batches:
            self._num_seen += len(batch)
            self._bad += batch.substitutions
        allowed = self._max_bad_fraction * max(self._num_seen, _MIN_JUDGED)
        if len(self._bad) > allowed:
            raise _too_many_bad(self._bad, self._num_seen, self._max_bad_fraction)
        return batches

    def close(self) -> None:
        """End the workers at once, even those that hang in a read. Safe to call twice."""
        self._stream.close()

    def __enter__(self) -> StepLoader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _micro_batches(self) -> Iterator[list[int]]:
        start = self._position
        while True:
            yield from step_positions(start, *self._step_shape)
            start += self._step_shape[0]


class ValLoader:
    """One pass over the held-out samples, each on exactly one rank; may be iterated again.

    The workers stay for the next pass: later in a run a fork would meet other threads' locks.

    Ranks have as many samples as each other, give or take one, but perhaps not as many batches:
    do not put a collective into each.

    Args:
        max_samples: over all ranks; all held-out samples by default.

    The others are those of ``StepLoader``.
    """

    def __init__(
        self,
        order: SampleOrder,
        indexes: Sequence[ShardIndex],
        text_spec: TextSpec,
        image_size: int,
        options: LoaderOptions,
        *,
        max_samples: int | None = None,
        features: FeatureReader | None = None,
    ) -> None:
        _check_sources(order, indexes)
        draws = ValDraws(order)
        self.num_samples = len(draws) if max_samples is None else min(len(draws), max_samples)
        self._spread = (len(draws), self.num_samples)
        self._micro_batch_size = options.micro_batch_size
        self._slice = rank_slice(self.num_samples, options.rank, options.world_size)
        maker = BatchMaker(
            draws,
            SampleReader(indexes),
            text_spec,
            image_size,
            resize=options.resize,
            instructions=InstructionChoice(options.seed, options.micro_batch_size),
            features=features,
        )
        self._stream = make_stream(maker, self._micro_batches, options, again=True)

    def __len__(self) -> int:
        """Batches of this rank."""
        low, high = self._slice
        return -(-(high - low) // self._micro_batch_size)

    def start(self) -> None:
        """Fork the workers now."""
        self._stream.start()

    def __iter__(self) -> Iterator[Batch]:
        self._stream.rewind()
        return self._stream

    def close(self) -> None:
        """End the workers at once. Safe to call twice."""
        self._stream.close()

    def _micro_batches(self) -> Iterator[list[int]]:
        low, high = self._slice
        available, used = self._spread
        for begin in range(low, high, self._micro_batch_size):
            ordinals = range(begin, min(begin + self._micro_batch_size, high))
            yield spread_ordinals(ordinals, available, used)


def _check_sources(order: SampleOrder, indexes: Sequence[ShardIndex]) -> None:
    faults = []
    if len(order.sources) != len(indexes):
        faults.append(f"{len(order.sources)} sources, but {len(indexes)} indexes")
    for source, index in zip(order.sources, indexes, strict=False):
        if source.num_samples != index.num_samples:
            faults.append(
                f"source {source.name!r} counts {source.num_samples} samples, "
                f"its index {index.path} {index.num_samples}"
            )
    if faults:
        raise ConfigError("the sample order and the indexes do not fit", faults=faults)


def _check_sizes(options: LoaderOptions) -> None:
    faults = [
        f"{name} is {value}; it must be {least} or more"
        for name, value, least in (
            ("micro_batch_size", options.micro_batch_size, 1),
            ("start_position", options.start_position, 0),
            ("num_workers", options.num_workers, 0),
        )
        if value < least
    ]
    if options.global_batch_size < options.world_size:
        faults.append(
            f"global_batch_size {options.global_batch_size} is below the {options.world_size} "
            "ranks: some would have no sample"
        )
    if faults:
        raise ConfigError("the batches cannot be laid out", faults=faults)


def _too_many_bad(bad: Sequence[Substitution], seen: int, limit: float) -> DataError:
    listed = "".join(f"\n  - {entry.key}: {entry.reason}" for entry in bad[-_LISTED:])
    more = f"\n  - and {len(bad) - _LISTED} before these" if len(bad) > _LISTED else ""
    return DataError(
        f"{len(bad)} of {seen} samples are bad, more than data.max_bad_fraction {limit} "
        f"allows:{listed}{more}",
        fix="repair or re-index the shards, or raise data.max_bad_fraction knowingly",
    )

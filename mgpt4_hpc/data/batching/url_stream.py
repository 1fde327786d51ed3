"""Shards behind URLs and pipes, through webdataset: a stream without numbers.

There is no index, so a sample cannot be asked for by number, and the run's position says how many
samples were read but not which. The mixture of the sources is exact, as with an index; the order
is drawn from the seed and the position where this attempt began, so that a resumed run does not
begin with the same shards again.
"""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import webdataset as wds
from torch.utils.data import get_worker_info

from mgpt4_hpc.config.schema import SourceConfig
from mgpt4_hpc.data.batching.batch_builder import BatchMaker, InstructionChoice
from mgpt4_hpc.data.batching.loader import LoaderOptions, StepLoader
from mgpt4_hpc.data.batching.text import TextSpec
from mgpt4_hpc.data.images.formats import READ
from mgpt4_hpc.data.index.caption import CaptionError, sample_text
from mgpt4_hpc.data.index.shard_list import expand_urls
from mgpt4_hpc.data.reading.reader import BadSampleError, RawSample
from mgpt4_hpc.data.sampling.order import keyed_permutation, mixing_pattern
from mgpt4_hpc.errors import DataError

SHUFFLE = 1000
"""Samples among which one is drawn."""


class StreamDraws:
    """The mixture: which source stands at a position. The sample is whatever comes next."""

    def __init__(self, sources: Sequence[SourceConfig], granularity: int) -> None:
        self._pattern = mixing_pattern([source.weight for source in sources])
        self._granularity = granularity

    def at(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        """(source id, position) of each position."""
        cycle = len(self._pattern)
        return [
            (int(self._pattern[position // self._granularity % cycle]), position)
            for position in positions
        ]

    def substitute(self, source_id: int, position: int, attempt: int) -> int:
        """The next sample again; which one that is cannot be known."""
        return position


class StreamReader:
    """Reads the streams of this process: each worker of each rank has a part of the shards.

    Args:
        sources: their paths are URLs; the position in this list is the source id.
        seed: of the shuffling.
        start_position: where this attempt began; another one gives another shuffle.
        rank, world_size, num_workers: the readers that share the shards.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        *,
        seed: int,
        start_position: int,
        rank: int,
        world_size: int,
        num_workers: int,
    ) -> None:
        self._sources = list(sources)
        self._key = (seed, start_position)
        self._rank = rank
        self._workers = max(1, num_workers)
        self._consumers = world_size * self._workers
        self._streams: dict[int, Iterator[dict[str, Any]]] = {}
        self._url = ""

    def read(self, source_id: int, sample_id: int) -> RawSample:
        """The next sample of a source, whatever ``sample_id`` is.

        Raises:
            BadSampleError: if it has no usable text, or its shard cannot be read on.
            DataError: if a whole epoch of the source gave nothing.
        """
        if source_id not in self._streams:
            self._streams[source_id] = self._stream(self._sources[source_id])
        sample = next(self._streams[source_id])
        self._url = str(sample["__url__"])
        key = str(sample.get("__key__", "?"))
        if "fault" in sample:
            raise BadSampleError(key, Path(self._url), f"the shard: {sample['fault']}")
        images = _images(sample)
        try:
            text = sample_text(sample.get("json"), sample.get("txt"), len(images))
        except CaptionError as error:
            raise BadSampleError(key, Path(self._url), str(error)) from None
        return RawSample(key, images, text)

    def shard_path(self, source_id: int, sample_id: int) -> Path:
        """The URL of the sample that was read last."""
        return Path(self._url)

    def close(self) -> None:
        """Forget the streams; their pipes end with them."""
        self._streams.clear()

    def _stream(self, source: SourceConfig) -> Iterator[dict[str, Any]]:
        urls = expand_urls(source.path)
        worker = get_worker_info()
        consumer = self._rank * self._workers + (worker.id if worker is not None else 0)
        for epoch in itertools.count():
            key = (*self._key, source.name, epoch)
            order = keyed_permutation(len(urls), *key, "order of URLs").tolist()
            # With fewer shards than consumers each reads all and keeps its share: one without a
            # shard would hold up all others for ever.
            shared = len(urls) < self._consumers
            shards = order if shared else order[consumer :: self._consumers]
            samples = _samples([urls[number] for number in shards])
            if shared:
                samples = itertools.islice(samples, consumer, None, self._consumers)
            rng = random.Random(repr((*key, consumer)))
            good = 0
            for sample in wds.filters._shuffle(samples, SHUFFLE, SHUFFLE // 10, rng=rng):
                good += "fault" not in sample
                yield sample
            if not good:
                if shutil.which("curl") is None and "http" in source.path:
                    raise DataError(
                        f"the source {source.name} ({source.path}) cannot be read: curl is not "
                        "installed on this node",
                        why="http(s) shards are read through the program curl",
                        fix="install curl, load its module (launch.modules), or download the "
                        "shards: mgpt4 data download",
                    )
                raise DataError(
                    f"the source {source.name} ({source.path}) gave no sample in a whole epoch",
                    why="its URLs cannot be read from this node, or hold no samples",
                    fix="try one by hand: curl -f URL | tar t",
                )


class StreamLoader(StepLoader):
    """``StepLoader`` over streams: the same batches of what comes, without the exact resume.

    Args:
        sources: their paths are URLs.
        granularity: samples taken from a source before the next one's turn.
        text_spec, image_size, options: see ``StepLoader``.
    """

    def __init__(
        self,
        sources: Sequence[SourceConfig],
        text_spec: TextSpec,
        image_size: int,
        options: LoaderOptions,
        *,
        granularity: int,
    ) -> None:
        maker = BatchMaker(
            StreamDraws(sources, granularity),
            StreamReader(
                sources,
                seed=options.seed,
                start_position=options.start_position,
                rank=options.rank,
                world_size=options.world_size,
                num_workers=options.num_workers,
            ),
            text_spec,
            image_size,
            resize=options.resize,
            instructions=InstructionChoice(options.seed, options.global_batch_size),
        )
        self._set_up(maker, options)


def _images(sample: dict[str, Any]) -> tuple[bytes, ...]:
    """The images of a sample, in order: ``jpg``, ``1.jpg``, and so on."""
    images: list[bytes] = []
    while True:
        number = f"{len(images)}." if images else ""
        image = next((sample[number + x] for x in READ if number + x in sample), None)
        if image is None:
            return tuple(images)
        images.append(image)


def _samples(urls: Sequence[str]) -> Iterator[dict[str, Any]]:
    """All samples of the shards; a truncated shard ends with a sample that holds the fault."""
    for url in urls:
        faults: list[Exception] = []

        def end_shard(error: Exception, faults: list[Exception] = faults) -> bool:
            """Keep the error; False ends the shard without an exception."""
            faults.append(error)
            return False

        shard = wds.SimpleShardList([url])
        yield from wds.DataPipeline(shard, wds.tarfile_to_samples(handler=end_shard))
        if faults:
            yield {"__url__": url, "fault": f"{type(faults[0]).__name__}: {faults[0]}"[:200]}

"""Writes a feature cache: the frozen towers' output for every sample that a run will consume.

Shapes: N images, C channels, H height, W width, I image tokens, Q projector's input width.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mgpt4_hpc.config.missing_inputs import unset_paths
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.data.batching.worker_stream import BatchStream
from mgpt4_hpc.data.encoding.images import DecodedImages, PlanImages
from mgpt4_hpc.data.encoding.plan import (
    EncodePlan,
    part_of,
    plan_encoding,
    sample_order,
    shard_name,
    substitutes,
)
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.index.temporary_output import remove_leftovers
from mgpt4_hpc.data.reading.feature_cache import FeatureCache, binding_of
from mgpt4_hpc.data.reading.feature_cache_file import (
    HALF_WRITTEN,
    STORED,
    BadRow,
    FeatureRow,
    write_shard,
)
from mgpt4_hpc.data.reading.reader import SampleReader
from mgpt4_hpc.data.sources.prepare import prepare_source
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import ConfigError, DataError
from mgpt4_hpc.formatting import size_text
from mgpt4_hpc.model.bundle.bundle import Bundle, open_bundle
from mgpt4_hpc.model.conversion.variants import require_variant
from mgpt4_hpc.model.nn.image_encoder import ImageEncoder
from mgpt4_hpc.model.nn.precision import choose_precision
from mgpt4_hpc.model.nn.preprocess import normalise
from mgpt4_hpc.train.device import choose_device, set_up_process

INDEX_FOLDER = "indexes"
_TEXT_BYTES = 400
"""Estimate of what a sample has beside its features: key, caption, numbers."""
_SPARE_BYTES = 64 * 2**20


def feature_binding(config: RunConfig, bundle: Bundle, device: torch.device) -> dict[str, Any]:
    """Everything that decides a sample's features, but for the sample."""
    precision: str = config.model.vision_precision
    if precision == "same":
        precision = choose_precision(config.model.precision, device)
    return binding_of(
        bundle=bundle.digest,
        image_size=bundle.architecture.image_size,
        has_qformer=bool(bundle.architecture.qformer),
        resize=config.data.resize,
        ln_vision=config.model.ln_vision,
        precision=precision,
    )


@dataclass(frozen=True)
class _Todo:
    """One shard to be written: its file name and the plan's rows in it."""

    name: str
    rows: tuple[int, ...]


class Encoding:
    """What has to be encoded for a run, and the encoding.

    Args:
        config: of the run.
        out: the cache's folder; an unfinished cache is continued.
        dtype: of the stored features, ``bf16`` or ``fp32``.
        samples_per_shard: a kill costs at most this many.

    Attributes:
        plan: all samples of the run.
        num_missing: those that are not in the cache yet, or are bad and lack a substitute.
        num_bytes: estimate of what these will take.

    Raises:
        ConfigError, DataError, WeightsError: if the run could not start either, or the folder
            holds features of something else.
    """

    def __init__(
        self, config: RunConfig, out: Path, *, dtype: str = "bf16", samples_per_shard: int = 2048
    ) -> None:
        if faults := unset_paths(config):
            raise ConfigError("the settings are not complete", faults=faults)
        self.config = config
        self.out = out.absolute()
        self.dtype = dtype
        self.bundle = open_bundle(config.model.weights)
        require_variant(config.model.variant, self.bundle.architecture, config.model.weights)
        self.device = choose_device(config, Ranks())
        arch = self.bundle.architecture
        self.shape = (arch.num_image_tokens, arch.projector_in)
        self.out.mkdir(exist_ok=True)
        (self.out / INDEX_FOLDER).mkdir(exist_ok=True)
        self.indexes = [
            ShardIndex.open(
                prepare_source(
                    source.name,
                    source.path,
                    Path(source.index) if source.index else None,
                    self.out / INDEX_FOLDER,
                )
            )
            for source in config.data.sources
        ]
        self._names = [source.name for source in config.data.sources]
        self.binding = feature_binding(config, self.bundle, self.device)
        digests = {
            name: index.digest for name, index in zip(self._names, self.indexes, strict=True)
        }
        self.cache = FeatureCache.create(self.out, self.binding, digests, dtype, self.shape)
        self._numbers = self.cache.source_numbers(self._names)
        self.plan: EncodePlan = plan_encoding(config, sample_order(config, self.indexes))
        there = self.plan.rows_done(self.cache)
        self.num_missing = int((~there).sum())
        self._todo = list(self._shards(there, samples_per_shard))

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of the features alone."""
        return int(np.prod(self.shape)) * STORED[self.dtype][1].itemsize

    @property
    def num_shards(self) -> int:
        """Shards that are still to be written."""
        return sum(bool(todo.rows) for todo in self._todo)

    @property
    def num_bytes(self) -> int:
        """About what is still to be written."""
        return self.num_missing * (self.bytes_per_sample + _TEXT_BYTES)

    def require_space(self) -> None:
        """Raise DataError unless what is missing fits the file system."""
        free = shutil.disk_usage(self.out).free
        if self.num_bytes + _SPARE_BYTES > free:
            raise DataError(
                f"{size_text(self.num_bytes)} are to be written to {self.out}, "
                f"where {size_text(free)} are free",
                fix="give another --out, fewer train.max_steps, or a smaller part of the run",
            )

    def run(
        self,
        *,
        batch_size: int | None = None,
        part: int = 1,
        parts: int = 1,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> int:
        """Encode what is missing, shard by shard; how many samples of it were found to be bad.

        Args:
            batch_size: images at a time; by default the run's micro-batch.
            part: which part of the shards, from 1.
            parts: of how many; they may run at the same time on several GPUs or machines.
            on_progress: called with (samples done, samples in all) of the part.

        Raises:
            DataError: if more samples are bad than ``data.max_bad_fraction`` allows, or a shard
                is gone.
            StorageTrouble: if shards cannot be read just now.
        """
        todo = [self._todo[number] for number in part_of(len(self._todo), part, parts)]
        todo = [shard for shard in todo if shard.rows]
        total = sum(len(shard.rows) for shard in todo)
        on_progress(0, total)
        if not total:
            return 0
        # A shard that a kill cut off may have another name now, by the stand-ins that are known.
        remove_leftovers(self.out / HALF_WRITTEN)
        size = batch_size or self.config.train.micro_batch_size
        images = PlanImages(
            self.plan,
            SampleReader(self.indexes),
            self.bundle.architecture.image_size,
            self.config.data.resize,
        )
        stream: BatchStream[DecodedImages] = BatchStream(
            images, lambda: _chunks(todo, size), self.config.data.num_workers, 2, None
        )
        stream.start()  # before CUDA and its threads: workers are forked
        set_up_process(self.config, Ranks())
        encoder = _Encoder(self, images, self._encoder(), size)
        done, num_bad = 0, 0
        try:
            for shard in todo:
                rows, bad = encoder.encode(shard, stream)
                done += len(shard.rows)
                num_bad += sum((b.source, b.sample) not in self.cache.bad for b in bad)
                # Before they are written: what a cache knows to be bad is never read again.
                self._require_few_bad(num_bad, done, encoder.last_bad)
                write_shard(self.out / shard.name, rows, bad, self.dtype)
                on_progress(done, total)
        except OSError as error:
            raise DataError(f"cannot write to {self.out}: {error.strerror or error}") from error
        finally:
            stream.close()
            self.cache.refresh()
        return num_bad

    def _require_few_bad(self, num_bad: int, done: int, last: str) -> None:
        """Raise DataError if more than ``data.max_bad_fraction`` of the samples done are bad."""
        limit = self.config.data.max_bad_fraction
        if num_bad > limit * max(done, 1000):
            raise DataError(
                f"{num_bad} of {done} samples are bad, more than data.max_bad_fraction "
                f"{limit} allows; the last: {last}",
                fix="repair or re-index the shards, or raise data.max_bad_fraction",
            )

    def _encoder(self) -> ImageEncoder:
        return ImageEncoder(
            self.bundle,
            precision=self.binding["vision_precision"],
            ln_vision=self.binding["ln_vision"],
            attention=self.config.model.attention,
            device=self.device,
            cuda_graphs=self.config.model.cuda_graphs,
        )

    def _shards(self, there: NDArray[np.bool_], per_shard: int) -> Iterator[_Todo]:
        """Every shard of the plan, also those that are done: parts count alike at every start."""
        for number, begin in enumerate(range(0, len(self.plan), per_shard)):
            rows = np.flatnonzero(~there[begin : begin + per_shard]) + begin
            name = shard_name(number, self.plan, rows, self._names) if len(rows) else ""
            yield _Todo(name, tuple(rows.tolist()))


def _chunks(todo: Sequence[_Todo], size: int) -> Iterator[list[int]]:
    for shard in todo:
        for begin in range(0, len(shard.rows), size):
            yield list(shard.rows[begin : begin + size])


class _Encoder:
    """Turns images into what a shard holds, with substitutes for the bad ones."""

    def __init__(
        self, encoding: Encoding, images: PlanImages, encoder: ImageEncoder, batch_size: int
    ) -> None:
        self._encoding = encoding
        self._images = images
        self._encoder = encoder
        self._batch_size = batch_size
        self.last_bad = ""

    def encode(
        self, shard: _Todo, stream: Iterator[DecodedImages]
    ) -> tuple[list[FeatureRow], list[BadRow]]:
        """What one shard is to hold, from the stream's next batches."""
        plan = self._encoding.plan
        rows: list[FeatureRow] = []
        bad: dict[tuple[int, int], BadRow] = {}
        remaining = len(shard.rows)
        while remaining:
            pictures = next(stream)
            remaining -= len(pictures.texts) + len(pictures.bad)
            samples = {
                row: (int(plan.source[row]), int(plan.sample[row]))
                for row, *_ in (*pictures.texts, *pictures.bad)
            }
            rows += self._encode(pictures, samples)
            self._note(bad, pictures, samples)
        for row in shard.rows:
            sample = (int(plan.source[row]), int(plan.sample[row]))
            if sample in bad:
                rows += self._stand_ins(row, rows, bad)
        return rows, list(bad.values())

    def _encode(
        self, pictures: DecodedImages, samples: Mapping[int, tuple[int, int]]
    ) -> list[FeatureRow]:
        if not pictures.texts:
            return []
        if len(pictures.images_NCHW):
            features_NIQ = self._encoder(normalise(pictures.images_NCHW, self._encoding.device))
        else:
            features_NIQ = torch.empty(0, *self._encoding.shape)
        stored = np.split(_bits(features_NIQ, self._encoding.dtype), np.cumsum(pictures.counts))
        return [
            FeatureRow(self._number(samples[row][0]), samples[row][1], key, text, features)
            for (row, key, text), features in zip(pictures.texts, stored[:-1], strict=True)
        ]

    def _note(
        self,
        bad: dict[tuple[int, int], BadRow],
        pictures: DecodedImages,
        samples: Mapping[int, tuple[int, int]],
    ) -> None:
        for row, key, reason in pictures.bad:
            source_id, sample_id = samples[row]
            bad[source_id, sample_id] = BadRow(self._number(source_id), sample_id, key, reason)
            self.last_bad = f"{key}: {reason}"

    def _stand_ins(
        self, row: int, rows: Sequence[FeatureRow], bad: dict[tuple[int, int], BadRow]
    ) -> list[FeatureRow]:
        """What replaces a bad sample, as far as it is in no shard by its own right."""
        encoding = self._encoding
        plan = encoding.plan
        good = {(encoded.source, encoded.sample) for encoded in rows}
        elsewhere: set[tuple[int, int]] = set()
        added: list[FeatureRow] = []

        def state(source_id: int, sample_id: int) -> bool | None:
            """True for a good sample, False for a bad one, None for an unknown one."""
            number = self._number(source_id)
            if (source_id, sample_id) in bad:
                return False
            if (number, sample_id) in good or (source_id, sample_id) in elsewhere:
                return True
            return encoding.cache.state(number, sample_id)

        while unknown := substitutes(plan, [row], state):
            for sample in dict.fromkeys(unknown):
                pictures = self._images.of([0], [sample])
                self._note(bad, pictures, {0: sample})
                if not pictures.texts:
                    continue
                if plan.has(*sample):
                    elsewhere.add(sample)
                    continue
                encoded = self._encode(pictures, {0: sample})
                added += encoded
                good |= {(entry.source, entry.sample) for entry in encoded}
        return added

    def _number(self, source_id: int) -> int:
        return self._encoding._numbers[source_id]


def _bits(features_NIQ: torch.Tensor, dtype: str) -> NDArray[Any]:
    """Features as NumPy holds them: float32, or bfloat16's bits as uint16."""
    if dtype == "fp32":
        array: NDArray[Any] = features_NIQ.float().cpu().numpy()
        return array
    halves = features_NIQ.to(torch.bfloat16).cpu().view(torch.int16).numpy()
    return halves.view(np.uint16)

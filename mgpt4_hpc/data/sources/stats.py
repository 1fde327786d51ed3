"""What a source's captions and images are like: lengths, sizes, duplicates."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from mgpt4_hpc.data.batching.text import Encode, clean_caption
from mgpt4_hpc.data.images.decode import shown_size
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.reading.reader import BadSampleError, RawSample, SampleReader
from mgpt4_hpc.data.sampling.order import Int64, keyed_words
from mgpt4_hpc.errors import StorageTrouble

MAX_WORDS = 50
"""Words that stage 1's cleaning leaves of a caption."""
LIMITS = {"stage1": 32, "stage2": 160}
"""Answer tokens, end symbol included, beyond which each stage cuts by default."""

_END_SYMBOLS = {"stage1": "\n", "stage2": "###"}
_SHOWN = 10
_PAUSES_S = (0.2,)
_TELL_EVERY = 256


@dataclass(frozen=True)
class Spread:
    """A quantity over all samples: of a histogram, so exact and of any number of samples."""

    minimum: int
    p5: int
    median: int
    mean: float
    p95: int
    maximum: int

    @classmethod
    def of(cls, counts: Counter[int]) -> Spread | None:
        """None for nothing counted."""
        if not counts:
            return None
        values = np.asarray(sorted(counts), dtype=np.int64)
        weights = np.asarray([counts[int(value)] for value in values], dtype=np.int64)
        reached = np.cumsum(weights)

        def quantile(share: float) -> int:
            return int(values[np.searchsorted(reached, share * reached[-1])])

        mean = float((values * weights).sum() / reached[-1])
        return cls(
            int(values[0]), quantile(0.05), quantile(0.5), mean, quantile(0.95), int(values[-1])
        )


@dataclass(frozen=True)
class Repeated:
    """One content that several samples have.

    Attributes:
        count: samples that have it.
        key, shard: the first of them.
        caption: its caption.
    """

    count: int
    key: str
    shard: str
    caption: str


@dataclass(frozen=True)
class Duplicates:
    """Samples whose bytes occurred before.

    Attributes:
        surplus: samples that could go without losing a content.
        share: of the samples read.
        largest: the most frequent contents.
    """

    surplus: int
    share: float
    largest: list[Repeated]


@dataclass
class SourceStats:
    """What ``collect_stats`` found; lengths are those of the samples read.

    Attributes:
        num_samples: usable samples of the source.
        num_read: those looked at.
        unreadable: how many could not be read, by reason.
        over_max_words: share of captions that stage 1's cleaning cuts at 50 words.
        tokens: per stage, of the answer with its end symbol; empty without a tokenizer.
        truncated: per stage, share of captions over the stage's limit.
        sizes: (width, height, images), the most frequent first.
        bad_images: whose header gives no size.
    """

    name: str
    num_samples: int
    num_quarantined: int
    num_read: int = 0
    unreadable: dict[str, int] = field(default_factory=dict)
    words: Spread | None = None
    over_max_words: float = 0.0
    tokens: dict[str, Spread | None] = field(default_factory=dict)
    truncated: dict[str, float] = field(default_factory=dict)
    width: Spread | None = None
    height: Spread | None = None
    image_bytes: Spread | None = None
    sizes: list[tuple[int, int, int]] = field(default_factory=list)
    bad_images: int = 0
    images: Duplicates | None = None
    captions: Duplicates | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def spread_choice(num_samples: int, count: int, *key: object) -> Int64:
    """``count`` distinct sample ids, ascending: a random one of each of ``count`` equal parts.

    Needs memory for ``count`` only, and reads on in one direction.
    """
    count = min(count, num_samples)
    if not count:
        return np.empty(0, dtype=np.int64)
    bounds = np.arange(count + 1, dtype=np.int64) * num_samples // count
    lengths = np.diff(bounds).astype(np.uint64)
    words = keyed_words(count, num_samples, *key)
    chosen: Int64 = bounds[:-1] + (words % lengths).astype(np.int64)
    return chosen


def collect_stats(
    index: ShardIndex,
    *,
    encode: Encode | None = None,
    limit: int = 0,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> SourceStats:
    """Read samples of a source and count.

    Args:
        index: of the source.
        encode: a text's token ids; without it tokens are left out.
        limit: samples to read, spread over the source; 0 is all. Duplicates are looked for
            among these alone.
        seed: chooses them.
        on_progress: called with (samples read, samples to read) now and then.

    Images are opened, not decoded: whether they decode is what ``mgpt4 data check`` tells.
    """
    if limit and limit < index.num_samples:
        chosen = spread_choice(index.num_samples, limit, seed, "stats")
    else:
        chosen = np.arange(index.num_samples, dtype=np.int64)
    reader = SampleReader([index], pauses_s=_PAUSES_S)
    tally = _Tally(encode, len(chosen))
    for done, sample_id in enumerate(chosen.tolist()):
        try:
            tally.add(sample_id, reader.read(0, sample_id))
        except BadSampleError as error:
            tally.unreadable[error.reason] += 1
        except StorageTrouble as error:
            tally.unreadable[f"the shard cannot be read: {error.__cause__}"] += 1
        if on_progress is not None and done % _TELL_EVERY == 0:
            on_progress(done, len(chosen))
    stats = tally.summary(index, reader)
    reader.close()
    return stats


class _Tally:
    """Histograms, and two 64-bit hashes a sample."""

    def __init__(self, encode: Encode | None, most: int) -> None:
        self.unreadable: Counter[str] = Counter()
        self.num = 0
        self._encode = encode
        self._words: Counter[int] = Counter()
        self._cut_words = 0
        self._tokens: dict[str, Counter[int]] = {stage: Counter() for stage in LIMITS}
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._bytes: Counter[int] = Counter()
        self._bad_images = 0
        self._ids = np.empty(most, dtype=np.int64)
        self._images = np.empty(most, dtype=np.uint64)
        self._captions = np.empty(most, dtype=np.uint64)

    def add(self, sample_id: int, sample: RawSample) -> None:
        caption = sample.caption
        cleaned = clean_caption(caption, None)
        self._words[len(caption.split())] += 1
        self._cut_words += len(cleaned.split()) > MAX_WORDS
        if self._encode is not None:
            texts = {"stage1": clean_caption(caption, MAX_WORDS), "stage2": caption}
            for stage, text in texts.items():
                self._tokens[stage][len(self._encode(text + _END_SYMBOLS[stage]))] += 1
        self._bytes[len(sample.jpg)] += 1
        size = _image_size(sample.jpg)
        if size is None:
            self._bad_images += 1
        else:
            self._sizes[size] += 1
        self._ids[self.num] = sample_id
        self._images[self.num] = _hash(sample.jpg)
        self._captions[self.num] = _hash(caption.encode(errors="surrogatepass"))
        self.num += 1

    def summary(self, index: ShardIndex, reader: SampleReader) -> SourceStats:
        stats = SourceStats(index.name, index.num_samples, len(index.quarantined), self.num)
        stats.unreadable = dict(self.unreadable.most_common())
        if not self.num:
            return stats
        stats.words = Spread.of(self._words)
        stats.over_max_words = self._cut_words / self.num
        if self._encode is not None:
            for stage, counts in self._tokens.items():
                stats.tokens[stage] = Spread.of(counts)
                over = sum(n for length, n in counts.items() if length > LIMITS[stage])
                stats.truncated[stage] = over / self.num
        widths: Counter[int] = Counter()
        heights: Counter[int] = Counter()
        for (width, height), count in self._sizes.items():
            widths[width] += count
            heights[height] += count
        stats.width, stats.height = Spread.of(widths), Spread.of(heights)
        stats.image_bytes = Spread.of(self._bytes)
        stats.sizes = [(*size, count) for size, count in self._sizes.most_common(_SHOWN)]
        stats.bad_images = self._bad_images
        stats.images = self._duplicates(self._images, index, reader)
        stats.captions = self._duplicates(self._captions, index, reader)
        return stats

    def _duplicates(
        self, hashes: NDArray[np.uint64], index: ShardIndex, reader: SampleReader
    ) -> Duplicates:
        _, first, counts = np.unique(hashes[: self.num], return_index=True, return_counts=True)
        surplus = self.num - len(counts)
        largest = []
        for place in np.argsort(-counts, kind="stable")[:_SHOWN].tolist():
            if counts[place] > 1:
                sample_id = int(self._ids[first[place]])
                shard = index.shard_names[index.shard_of(sample_id)]
                caption = _caption(reader, sample_id)
                key = index.key(sample_id)
                largest.append(Repeated(int(counts[place]), key, shard, caption))
        return Duplicates(surplus, surplus / self.num, largest)


def _caption(reader: SampleReader, sample_id: int) -> str:
    try:
        return reader.read(0, sample_id).caption
    except (BadSampleError, StorageTrouble):  # gone since it was counted
        return ""


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _image_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) as shown, from an image's header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(data)) as image:
                return shown_size(image)
    except Exception:  # noqa: BLE001 - decoders of foreign bytes raise anything
        return None

"""What a source's captions and images are like: lengths, sizes, duplicates."""

from __future__ import annotations

import hashlib
import io
import warnings
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from mgpt4_hpc.chat_format import Encode, TemplateFormat
from mgpt4_hpc.data.batching.text import clean_caption
from mgpt4_hpc.data.images.decode import shown_size
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.reading.reader import BadSampleError, RawSample, SampleReader
from mgpt4_hpc.data.sampling.order import Int64, keyed_words
from mgpt4_hpc.errors import StorageTrouble
from mgpt4_hpc.prompts import TEMPLATES, Dialogue

MAX_WORDS = 50
"""Words that stage 1's cleaning leaves of a caption."""
LIMITS = {"stage1": 32, "stage2": 160}
"""Answer tokens, end symbol included, beyond which each stage cuts by default."""
MAX_TOKENS = 2048
"""Tokens of a conversation beyond which its last turns are left out by default."""
NUM_IMAGE_TOKENS = 32
"""Tokens of one image, with a Q-Former."""

_END_SYMBOLS = {"stage1": "\n", "stage2": "###"}
_SHOWN = 10
_PAUSES_S = (0.2,)
_REPORT_EVERY = 256


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
            """The smallest value that ``share`` of all counted ones do not exceed."""
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
    """Samples that repeat earlier bytes.

    Attributes:
        surplus: samples that could go without losing a content.
        share: of the samples read.
        largest: the most frequent contents.
    """

    surplus: int
    share: float
    largest: list[Repeated]


@dataclass(frozen=True)
class ConversationStats:
    """Lengths of conversations.

    Attributes:
        count: of the samples read.
        turns: questions with their answers in each.
        images: in each.
        tokens: of each in the template vicuna_v0, images of 32 tokens included; None without a
            tokenizer, as all that follows.
        cut: share that is over 2,048 tokens and loses turns.
        answer_tokens: of each answer with its end symbol.
        truncated_answers: share of the answers over stage 2's limit.
    """

    count: int
    turns: Spread | None
    images: Spread | None
    tokens: Spread | None
    cut: float
    answer_tokens: Spread | None
    truncated_answers: float


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
        bad_images: images without a size in their header.
        conversations: what is counted of conversations alone; None if there are none.
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
    conversations: ConversationStats | None = None


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

    Images are opened, not decoded; ``mgpt4 data check`` decodes them.
    """
    if limit and limit < index.num_samples:
        chosen = spread_choice(index.num_samples, limit, seed, "stats")
    else:
        chosen = np.arange(index.num_samples, dtype=np.int64)
    reader = SampleReader([index], pauses_s=_PAUSES_S)
    tally = _Tally(encode)
    for done, sample_id in enumerate(chosen.tolist()):
        try:
            tally.add(sample_id, reader.read(0, sample_id))
        except BadSampleError as error:
            tally.unreadable[error.reason] += 1
        except StorageTrouble as error:
            tally.unreadable[f"the shard cannot be read: {error.__cause__}"] += 1
        if on_progress is not None and done % _REPORT_EVERY == 0:
            on_progress(done, len(chosen))
    stats = tally.summary(index, reader)
    reader.close()
    return stats


class _Tally:
    """Histograms, and two 64-bit hashes a sample."""

    def __init__(self, encode: Encode | None) -> None:
        self.unreadable: Counter[str] = Counter()
        self.num = 0
        self._encode = encode
        self._conversations = _Conversations(encode)
        self._words: Counter[int] = Counter()
        self._cut_words = 0
        self._tokens: dict[str, Counter[int]] = {stage: Counter() for stage in LIMITS}
        self._sizes: Counter[tuple[int, int]] = Counter()
        self._bytes: Counter[int] = Counter()
        self._bad_images = 0
        self._images, self._image_ids = array("Q"), array("q")
        self._captions, self._ids = array("Q"), array("q")

    def add(self, sample_id: int, sample: RawSample) -> None:
        """Count one sample that was read."""
        if isinstance(sample.text, str):
            self._add_caption(sample.text)
        else:
            self._conversations.add(sample.text)
        for image in sample.images:
            self._add_image(image)
            self._image_ids.append(sample_id)
        self._ids.append(sample_id)
        self._captions.append(_hash(sample.caption.encode(errors="surrogatepass")))
        self.num += 1

    def _add_caption(self, caption: str) -> None:
        cleaned = clean_caption(caption, None)
        self._words[len(caption.split())] += 1
        self._cut_words += len(cleaned.split()) > MAX_WORDS
        if self._encode is not None:
            texts = {"stage1": clean_caption(caption, MAX_WORDS), "stage2": caption}
            for stage, text in texts.items():
                self._tokens[stage][len(self._encode(text + _END_SYMBOLS[stage]))] += 1

    def _add_image(self, image: bytes) -> None:
        self._bytes[len(image)] += 1
        self._images.append(_hash(image))
        size = _image_size(image)
        if size is None:
            self._bad_images += 1
        else:
            self._sizes[size] += 1

    def summary(self, index: ShardIndex, reader: SampleReader) -> SourceStats:
        """The statistics of all that was added; ``reader`` names the samples that repeat."""
        stats = SourceStats(index.name, index.num_samples, len(index.quarantined), self.num)
        stats.unreadable = dict(self.unreadable.most_common())
        if not self.num:
            return stats
        stats.words = Spread.of(self._words)
        captions = max(1, self._words.total())
        stats.over_max_words = self._cut_words / captions
        stats.conversations = self._conversations.summary()
        if self._encode is not None:
            for stage, counts in self._tokens.items():
                stats.tokens[stage] = Spread.of(counts)
                over = sum(n for length, n in counts.items() if length > LIMITS[stage])
                stats.truncated[stage] = over / captions
        widths: Counter[int] = Counter()
        heights: Counter[int] = Counter()
        for (width, height), count in self._sizes.items():
            widths[width] += count
            heights[height] += count
        stats.width, stats.height = Spread.of(widths), Spread.of(heights)
        stats.image_bytes = Spread.of(self._bytes)
        stats.sizes = [(*size, count) for size, count in self._sizes.most_common(_SHOWN)]
        stats.bad_images = self._bad_images
        stats.images = self._duplicates(self._images, self._image_ids, index, reader)
        stats.captions = self._duplicates(self._captions, self._ids, index, reader)
        return stats

    def _duplicates(
        self, hashes: array[int], ids: array[int], index: ShardIndex, reader: SampleReader
    ) -> Duplicates:
        contents = np.asarray(hashes, dtype=np.uint64)
        _, first, counts = np.unique(contents, return_index=True, return_counts=True)
        surplus = len(hashes) - len(counts)
        largest = []
        for place in np.argsort(-counts, kind="stable")[:_SHOWN].tolist():
            if counts[place] > 1:
                sample_id = ids[first[place]]
                shard = index.shard_names[index.shard_of(sample_id)]
                caption = _caption(reader, sample_id)
                key = index.key(sample_id)
                largest.append(Repeated(int(counts[place]), key, shard, caption))
        return Duplicates(surplus, surplus / max(1, len(hashes)), largest)


class _Conversations:
    """Histograms of conversations."""

    def __init__(self, encode: Encode | None) -> None:
        self._format = None
        if encode is not None:
            self._format = TemplateFormat(TEMPLATES["vicuna_v0"], encode, bos_id=0)
        self._turns: Counter[int] = Counter()
        self._images: Counter[int] = Counter()
        self._tokens: Counter[int] = Counter()
        self._answers: Counter[int] = Counter()

    def add(self, dialogue: Dialogue) -> None:
        """Count one conversation; its tokens only if there is a tokenizer."""
        self._turns[len(dialogue.turns)] += 1
        self._images[dialogue.num_images] += 1
        if self._format is None:
            return
        runs = [run for run in self._format.lay_out(dialogue) if run is not None]
        images = dialogue.num_images * NUM_IMAGE_TOKENS
        self._tokens[sum(len(run.ids) for run in runs) + images] += 1
        self._answers.update(len(run.ids) for run in runs if any(run.learned))

    def summary(self) -> ConversationStats | None:
        """The statistics of all that was added; None without a conversation."""
        if not self._turns:
            return None
        return ConversationStats(
            count=self._turns.total(),
            turns=Spread.of(self._turns),
            images=Spread.of(self._images),
            tokens=Spread.of(self._tokens),
            cut=_share_above(self._tokens, MAX_TOKENS),
            answer_tokens=Spread.of(self._answers),
            truncated_answers=_share_above(self._answers, LIMITS["stage2"]),
        )


def _share_above(counts: Counter[int], limit: int) -> float:
    above = sum(count for length, count in counts.items() if length > limit)
    return above / max(1, counts.total())


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

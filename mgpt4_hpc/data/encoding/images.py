# ruff: noqa: N815 - tensor names carry their shape
"""Images of the samples that are to be encoded: what data workers make of rows of the plan.

Shapes: N images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mgpt4_hpc.data.batching.batch_builder import decode_images
from mgpt4_hpc.data.encoding.plan import EncodePlan
from mgpt4_hpc.data.images.decode import ImageError, Resize
from mgpt4_hpc.data.reading.reader import BadSampleError, SampleReader
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.prompts import Dialogue


@dataclass(frozen=True)
class DecodedImages:
    """Decoded images of some samples; those of bad ones are absent.

    Attributes:
        images_NCHW: uint8, sample by sample.
        texts: (row of the plan, key, text) of each sample.
        counts: images of each.
        bad: (row, key, reason) of the others.
    """

    images_NCHW: torch.Tensor
    texts: tuple[tuple[int, str, str | Dialogue], ...]
    counts: tuple[int, ...]
    bad: tuple[tuple[int, str, str], ...]

    def pin_memory(self, device: object = None) -> DecodedImages:
        """A copy in page-locked memory (called by DataLoader)."""
        return replace(self, images_NCHW=self.images_NCHW.pin_memory())


class PlanImages:
    """Reads and decodes rows of the plan: what data workers run."""

    def __init__(
        self,
        plan: EncodePlan,
        reader: SampleReader,
        image_size: int,
        resize: Resize,
    ) -> None:
        self._plan = plan
        self._reader = reader
        self._image_size = image_size
        self._resize: Resize = resize

    def __call__(self, rows: list[int]) -> DecodedImages:
        """The images of these rows."""
        samples = [(int(self._plan.source[row]), int(self._plan.sample[row])) for row in rows]
        return self.of(rows, samples)

    def of(self, rows: Sequence[int], samples: Sequence[tuple[int, int]]) -> DecodedImages:
        """The images of samples that are called ``rows`` here.

        Raises:
            DataError, StorageTrouble: if a shard cannot be read, whatever its samples may be: a
                cache knows bad ones for ever.
        """
        images = [np.empty((0, 3, self._image_size, self._image_size), np.uint8)]
        texts: list[tuple[int, str, str | Dialogue]] = []
        bad: list[tuple[int, str, str]] = []
        for row, (source_id, sample_id) in zip(rows, samples, strict=True):
            try:
                sample = self._reader.read(source_id, sample_id)
                # A caption is of the first image; a conversation may have none.
                used = sample.images[:1] if isinstance(sample.text, str) else sample.images
                pixels_NCHW = decode_images(used, self._image_size, self._resize)
            except ImageError as error:
                shard = self._reader.shard_path(source_id, sample_id)
                bad.append((row, sample.key, f"{shard}: {error}"))
            except BadSampleError as error:
                if error.errno is not None:
                    raise DataError(
                        str(error),
                        why="its samples may be good, and a cache knows bad ones for ever",
                        fix="see that all shards can be read; the same command then goes on",
                    ) from None
                bad.append((row, error.key, f"{error.shard}: {error.reason}"))
            else:
                texts.append((row, sample.key, sample.text))
                images.append(pixels_NCHW)
        counts = tuple(map(len, images[1:]))
        return DecodedImages(
            torch.from_numpy(np.concatenate(images)), tuple(texts), counts, tuple(bad)
        )

    def close(self) -> None:
        """Close the shards that this process opened."""
        self._reader.close()

# ruff: noqa: N815 - tensor names carry their shape
"""What the trainer receives: micro-batches of images and token sequences.

Shapes: B samples, N images of all samples, C channels (3), H and W pixels, T token positions,
I image tokens, Q their width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mgpt4_hpc.data.batching.text import NO_LABEL, TokenSequence


@dataclass(frozen=True, slots=True)
class Substitution:
    """One sample that could not be used, and what stands in its place.

    Attributes:
        position: in the run's sequence.
        key: of the bad sample.
        reason: why it is bad.
        replaced_by: key of the other sample.
    """

    position: int
    key: str
    reason: str
    replaced_by: str


@dataclass(frozen=True)
class Batch:
    """A micro-batch, padded on the right to its longest sequence.

    Attributes:
        images_NCHW: uint8 pixels, not normalised, sample by sample as the slots stand; empty
            (N, 0, 0, 0) if there are features.
        input_ids_BT: int64; image slots and padding hold the pad id.
        image_mask_BT: bool, True in image slots.
        labels_BT: int64, the token itself on answer positions, -100 elsewhere; not shifted.
        attention_mask_BT: bool, False on padding.
        num_answer_tokens: positions with a label; may be 0.
        keys: of the samples.
        positions: of the samples in the run's sequence.
        substitutions: samples that had to be replaced.
        num_cut_turns: left out of conversations that were too long.
        features_NIQ: what the frozen towers made of the images, bf16 or float32, if it was stored.
    """

    images_NCHW: Tensor
    input_ids_BT: Tensor
    image_mask_BT: Tensor
    labels_BT: Tensor
    attention_mask_BT: Tensor
    num_answer_tokens: int
    keys: tuple[str, ...]
    positions: tuple[int, ...]
    substitutions: tuple[Substitution, ...] = ()
    num_cut_turns: int = 0
    features_NIQ: Tensor | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def pin_memory(self, device: object = None) -> Batch:
        """A copy in page-locked memory (called by DataLoader), for asynchronous copies to a GPU."""
        return self._with_tensors(Tensor.pin_memory)

    def to(self, device: torch.device | str) -> Batch:
        """A copy on ``device``; asynchronous from pinned memory."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=True))

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        return replace(self, **(values | {name: change(tensors[name]) for name in tensors}))


def collate(
    pictures: NDArray[Any],
    sequences: Sequence[TokenSequence],
    pad_id: int,
    *,
    keys: Sequence[str],
    positions: Sequence[int],
    substitutions: Sequence[Substitution] = (),
) -> Batch:
    """A batch of B samples, at least one, with sequences of any length.

    ``pictures`` are pixels uint8 (N, C, H, W), or features (N, I, Q): float32, or the bits of
    bfloat16 as uint16, which NumPy lacks. They stand in the order of the sequences' slots.
    """
    assert len(pictures) == sum(sequence.num_images for sequence in sequences)
    images_NCHW, features_NIQ = torch.from_numpy(pictures), None
    if pictures.ndim == 3:
        stored = images_NCHW
        features_NIQ = stored.view(torch.bfloat16) if pictures.dtype == np.uint16 else stored
        images_NCHW = torch.empty((len(pictures), 0, 0, 0), dtype=torch.uint8)
    lengths = [len(sequence.input_ids) for sequence in sequences]
    shape = (len(sequences), max(lengths))
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    image_mask = np.zeros(shape, dtype=np.bool_)
    labels = np.full(shape, NO_LABEL, dtype=np.int64)
    for row, (sequence, length) in enumerate(zip(sequences, lengths, strict=True)):
        input_ids[row, :length] = sequence.input_ids
        image_mask[row, :length] = sequence.image_mask
        labels[row, :length] = sequence.labels
    attention_mask = np.arange(shape[1])[None, :] < np.asarray(lengths)[:, None]
    return Batch(
        images_NCHW=images_NCHW,
        input_ids_BT=torch.from_numpy(input_ids),
        image_mask_BT=torch.from_numpy(image_mask),
        labels_BT=torch.from_numpy(labels),
        attention_mask_BT=torch.from_numpy(attention_mask),
        num_answer_tokens=int((labels != NO_LABEL).sum()),
        keys=tuple(keys),
        positions=tuple(positions),
        substitutions=tuple(substitutions),
        num_cut_turns=sum(sequence.num_cut for sequence in sequences),
        features_NIQ=features_NIQ,
    )

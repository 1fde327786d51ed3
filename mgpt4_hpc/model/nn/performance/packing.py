"""A micro-batch without padding: the tokens that matter, one sequence after the other.

Attention is causal, so nothing after the last position that predicts a learned token can change
the loss: neither padding, nor the last answer token itself, nor a sample without any answer. All of
them are left out. Everything that would need a look at the data (how many, where) is decided from
the batch where it lies, on the CPU; a GPU receives finished index lists and is never waited for.

Shapes: B rows of the batch, T its columns, N tokens kept, S image slots kept, A tokens predicted,
R rows kept.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

IGNORED = -100
"""Label of a token that is not learned, as everywhere in torch and transformers."""


@dataclass(frozen=True)
class Packed:
    """Index lists, int64 unless noted.

    Attributes:
        token_ids_N: ids, anything in image slots.
        positions_N: place within its own sequence, from 0.
        padded_N: place in a (R x longest) table, flattened.
        slots_S: which of the N are image slots.
        images_S: which of the batch's image embeddings belongs there, counted over the whole batch.
        predicts_A: which of the N predict a learned token.
        labels_A: those tokens.
        starts_R1: int32, R + 1 numbers: where each sequence begins, and the end.
        num_rows: R.
        longest: tokens of the longest sequence.
        all_images: whether ``images_S`` is simply 0, 1, 2, ... over all of them.
    """

    token_ids_N: torch.Tensor  # noqa: N815 - tensor names carry their shape
    positions_N: torch.Tensor  # noqa: N815
    padded_N: torch.Tensor  # noqa: N815
    slots_S: torch.Tensor  # noqa: N815
    images_S: torch.Tensor  # noqa: N815
    predicts_A: torch.Tensor  # noqa: N815
    labels_A: torch.Tensor  # noqa: N815
    starts_R1: torch.Tensor  # noqa: N815
    num_rows: int
    longest: int
    all_images: bool

    @property
    def num_tokens(self) -> int:
        """N: what the language model computes."""
        return len(self.token_ids_N)

    def lengths(self) -> list[int]:
        """Tokens of each sequence; reads the device."""
        return self.starts_R1.diff().tolist()

    def to(self, device: torch.device) -> Packed:
        """On ``device``, in a single asynchronous copy."""
        if self.token_ids_N.device == device:
            return self
        names = [f.name for f in dataclasses.fields(self) if f.type == "torch.Tensor"]
        tensors = [getattr(self, name) for name in names]
        joined = torch.cat([tensor.long() for tensor in tensors])
        if device.type == "cuda":
            joined = joined.pin_memory()
        parts = joined.to(device, non_blocking=True).split([len(tensor) for tensor in tensors])
        moved = {
            name: part.to(tensor.dtype)
            for name, part, tensor in zip(names, parts, tensors, strict=True)
        }
        return dataclasses.replace(self, **moved)


def pack(
    input_ids_BT: torch.Tensor, image_mask_BT: torch.Tensor, labels_BT: torch.Tensor
) -> Packed:
    """Leave out what cannot change the loss. Give it CPU tensors, or it waits for the device.

    Args:
        input_ids_BT: ids, padded on the right.
        image_mask_BT: True in image slots, which are counted row by row.
        labels_BT: the token where it is learned, -100 elsewhere; not shifted. A label at t = 0 has
            nothing to be predicted from and is ignored.
    """
    device, (_, num_columns) = labels_BT.device, labels_BT.shape
    learned_BT = labels_BT != IGNORED
    learned_BT[:, :1] = False
    columns_T = torch.arange(num_columns, device=device)
    # The last learned token is at this column, and it predicts nothing itself.
    lengths_B = (learned_BT * columns_T).amax(dim=1)
    flat_N = (columns_T < lengths_B[:, None]).flatten().nonzero().squeeze(1)
    positions_N = flat_N % num_columns
    lengths_R = lengths_B[lengths_B > 0]
    starts_R1 = torch.zeros(len(lengths_R) + 1, dtype=torch.int32, device=device)
    starts_R1[1:] = lengths_R.cumsum(0)
    longest = int(lengths_R.max()) if len(lengths_R) else 0
    rows_N = torch.repeat_interleave(torch.arange(len(lengths_R), device=device), lengths_R)

    mask_BT = image_mask_BT.flatten()
    slots_S = mask_BT[flat_N].nonzero().squeeze(1)
    images_S = mask_BT.cumsum(0)[flat_N[slots_S]] - 1
    labels_N = labels_BT.flatten()[flat_N + 1]
    predicts_A = (labels_N != IGNORED).nonzero().squeeze(1)
    return Packed(
        token_ids_N=input_ids_BT.flatten()[flat_N],
        positions_N=positions_N,
        padded_N=rows_N * longest + positions_N,
        slots_S=slots_S,
        images_S=images_S,
        predicts_A=predicts_A,
        labels_A=labels_N[predicts_A],
        starts_R1=starts_R1,
        num_rows=len(lengths_R),
        longest=longest,
        all_images=len(images_S) == int(mask_BT.sum()),
    )

"""Tensors to the bytes of a safetensors file, without a copy and without holding the interpreter.

`safetensors.torch.save` copies everything twice and holds the interpreter lock meanwhile: 0.7 s
for the 277 MB of the Llama-2 variant, during which no training step can be launched. The layout
is eight bytes of header length, a JSON header and the raw numbers, so here it is produced as
buffers that `os.write` and `hashlib` consume with the lock released. The bytes equal the
library's (a test compares them), and the library does all the reading.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

# In the order in which the library lays tensors out: its enumeration's, largest last.
_DTYPES: dict[torch.dtype, str] = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.uint64: "U64",
}
_RANK = {dtype: rank for rank, dtype in enumerate(_DTYPES)}


def encode_tensors(tensors: Mapping[str, Tensor]) -> Iterator[memoryview]:
    """The bytes of a safetensors file, piece by piece.

    Args:
        tensors: name to tensor on the CPU; order does not matter, the bytes are always the same.

    Yields:
        The header, then one view of unsigned bytes per tensor. The views alias the tensors: do
        not change these before the pieces are consumed.

    Raises:
        TypeError: a tensor's dtype has no place in the format's plain numbers.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _RANK:
            raise TypeError(f"tensor {name!r} has dtype {tensor.dtype}, which is not stored")
    names = sorted(tensors, key=lambda name: (-_RANK[tensors[name].dtype], name))
    header: dict[str, object] = {}
    offset = 0
    for name in names:
        tensor = tensors[name]
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    yield memoryview(len(text).to_bytes(8, "little") + text)
    for name in names:
        if tensors[name].numel():
            yield _raw(tensors[name])


def _raw(tensor: Tensor) -> memoryview:
    flat = tensor.detach().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data

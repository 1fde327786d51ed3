"""Names, shapes, types and places of the tensors in a weight file, read without torch or the data.

A safetensors file begins with 8 bytes that hold the header's length (little endian) and a JSON
header; the tensors' bytes follow without gaps. Torch files are read by ``torch_directory.py``.
Either way a truncated file is recognised by its size alone.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.weight_files.untrusted_files import require_real_file
from mgpt4_hpc.text_files import parse_json

_MAX_HEADER_BYTES = 100 * 1024 * 1024  # the format's own limit

ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "I16": 2, "U16": 2, "F16": 2,
    "BF16": 2, "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""Bytes of one number, by safetensors' names of the types."""

DTYPE_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64",
    "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "uint16": "U16",
    "uint32": "U32", "uint64": "U64", "complex64": "C64", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}  # fmt: skip
"""Safetensors' names of the types, by torch's."""
TORCH_NAMES = {name: torch_name for torch_name, name in DTYPE_NAMES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as its file describes it.

    Attributes:
        dtype: as safetensors writes it (``BF16``).
        shape, num_bytes: its sizes.
        file: where it is stored.
        start: offset of its first byte in the file; None where its numbers are not contiguous.
        data: its bytes, where no file holds them.
    """

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int
    file: Path = Path()
    start: int | None = None
    data: bytes | None = None

    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def is_floating_point(self) -> bool:
        """Whether it holds floating-point numbers."""
        return self.dtype.startswith(("F", "BF"))

    def read(self) -> bytes:
        """Its bytes, from the file."""
        assert self.start is not None
        with self.file.open("rb") as file:
            file.seek(self.start)
            return file.read(self.num_bytes)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Every tensor's description, by the file's suffix as in ``sources.read_tensors``.

    Raises:
        WeightsError: if the file is missing, truncated or of another format.
    """
    if path.suffix != ".safetensors":
        from mgpt4_hpc.model.weight_files.torch_directory import read_directory
        from mgpt4_hpc.model.weight_files.untrusted_files import tensors_of

        return tensors_of(read_directory(path), path)
    require_real_file(path)
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, _MAX_HEADER_BYTES):
                raise ValueError("the header is longer than the file")
            header = parse_json(file.read(length))
        header.pop("__metadata__", None)
        tensors = {key: _described(entry, path, 8 + length) for key, entry in header.items()}
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"{path} is not a safetensors file, or its start is damaged",
            fix="copy or download it again",
        ) from error
    if 8 + length + end != size:
        raise WeightsError(
            f"{path} is truncated: {size:,} bytes instead of {8 + length + end:,}",
            fix="copy or download it again",
        )
    return tensors


def _described(entry: Mapping[str, Any], path: Path, data_start: int) -> TensorInfo:
    begin, end = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    item = ITEM_BYTES.get(dtype)
    if item is not None and math.prod(shape) * item != end - begin:
        raise ValueError(f"{shape} of {dtype} are not {end - begin} bytes")
    return TensorInfo(dtype, shape, end - begin, path, data_start + begin)

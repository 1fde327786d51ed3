"""Shapes and types in a safetensors file, read from its first kilobytes without torch.

The format: 8 bytes with the header's length (little endian), a JSON header, then the tensors' bytes
without gaps. So a truncated file is known by its size alone.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.untrusted_files import require_real_file

_MAX_HEADER_BYTES = 100 * 1024 * 1024  # the format's own limit


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header describes it; ``dtype`` as safetensors writes it (``BF16``)."""

    dtype: str
    shape: tuple[int, ...]
    num_bytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """Every tensor's description.

    Raises:
        WeightsError: if the file is missing, truncated or of another format.
    """
    require_real_file(path)
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size, _MAX_HEADER_BYTES):
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {
            key: TensorInfo(
                entry["dtype"],
                tuple(entry["shape"]),
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for key, entry in header.items()
        }
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} is not a safetensors file, or its start is damaged") from error
    if 8 + length + end != size:
        raise WeightsError(
            f"{path} is truncated: {size:,} bytes instead of {8 + length + end:,}",
            fix="copy or download it again",
        )
    return tensors

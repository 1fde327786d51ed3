"""One shard of a feature cache: a safetensors file that is read row by row with ``pread``.

It appears whole or not at all. Arrays, for n samples with m images of I image tokens of width Q:

=========  ===========================  =====================================================
features   BF16 or F32 [m, I, Q]        what the frozen towers make of each image
image_end  I64 [n]                      end of each sample's images; absent if each has one
sample     I64 [n]                      sample number within its source's index
source     I32 [n]                      number of the source in the cache
text_end   I64 [n]                      end of each sample's text in ``text``
crc        U32 [n]                      CRC32 of each row's features followed by its text
text       U8 [...]                     JSON [key, caption] of each sample, one behind the other;
                                        of a conversation [key, its record]
bad        U8 [...]                     JSON list of [source, sample, key, reason]
=========  ===========================  =====================================================
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgpt4_hpc.data.index.conversations import parse_conversation, record_of
from mgpt4_hpc.data.index.temporary_output import scratch_path
from mgpt4_hpc.disk import fsync_folder
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.prompts import Dialogue
from mgpt4_hpc.text_files import parse_json

STORED: dict[str, tuple[str, np.dtype[Any]]] = {
    "bf16": ("BF16", np.dtype("<u2")),
    "fp32": ("F32", np.dtype("<f4")),
}
"""For each type: safetensors' name, and the NumPy type that holds its bits."""

HALF_WRITTEN = "shard"
"""What the hidden names of files begin with that are not whole yet."""

_NUMPY = {"I64": "<i8", "I32": "<i4", "U32": "<u4", "U8": "u1"}


@dataclass(frozen=True)
class FeatureRow:
    """One sample as it is stored; ``features`` (N, I, Q) holds bits of the cache's type."""

    source: int
    sample: int
    key: str
    text: str | Dialogue
    features: NDArray[Any]


@dataclass(frozen=True)
class BadRow:
    """One sample that could not be encoded, and why."""

    source: int
    sample: int
    key: str
    reason: str


def write_shard(path: Path, rows: Sequence[FeatureRow], bad: Sequence[BadRow], dtype: str) -> None:
    """Write rows, at least one of either kind, so that the file appears whole and on disk.

    Raises:
        OSError: if it cannot be written; nothing is left then.
    """
    name, bits = STORED[dtype]
    stored = [r.text if isinstance(r.text, str) else record_of(r.text) for r in rows]
    texts = [json.dumps([r.key, t]).encode() for r, t in zip(rows, stored, strict=True)]
    crcs = [
        zlib.crc32(text, zlib.crc32(np.ascontiguousarray(row.features, bits).data))
        for row, text in zip(rows, texts, strict=True)
    ]
    shape = rows[0].features.shape[1:] if rows else (0, 0)
    image_end = np.cumsum([len(row.features) for row in rows], dtype="<i8")
    num_images = int(image_end[-1]) if rows else 0
    bad_json = json.dumps([[b.source, b.sample, b.key, b.reason] for b in bad]).encode()
    small = {
        "sample": ("I64", np.asarray([row.sample for row in rows], "<i8")),
        "text_end": ("I64", np.cumsum([len(text) for text in texts], dtype="<i8")),
        "source": ("I32", np.asarray([row.source for row in rows], "<i4")),
        "crc": ("U32", np.asarray(crcs, "<u4")),
        "text": ("U8", np.frombuffer(b"".join(texts), "u1")),
        "bad": ("U8", np.frombuffer(bad_json, "u1")),
    }
    if any(len(row.features) != 1 for row in rows):
        small["image_end"] = ("I64", image_end)
    end = num_images * int(np.prod(shape)) * bits.itemsize
    header: dict[str, Any] = {
        "features": {"dtype": name, "shape": [num_images, *shape], "data_offsets": [0, end]}
    }
    for key, (kind, array) in small.items():
        begin, end = end, end + array.nbytes
        header[key] = {"dtype": kind, "shape": [len(array)], "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    temporary = scratch_path(path.with_name(HALF_WRITTEN))
    try:
        with temporary.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for row in rows:
                file.write(np.ascontiguousarray(row.features, bits).data)
            for _, array in small.values():
                file.write(array.tobytes())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


class FeatureShard:
    """An opened shard: which samples it has and where; no features are read yet.

    Attributes:
        path: the file.
        source, sample: (n,) of its samples.
        bad: samples that could not be encoded.
        shape: (I, Q).

    Raises:
        DataError: if it is no such file, or cut short.
    """

    def __init__(self, path: Path, dtype: str) -> None:
        self.path = path
        self._bits = STORED[dtype][1]
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                self._data = 8 + length
                header = parse_json(file.read(length))
                last = max(entry["data_offsets"][1] for entry in header.values())
                if os.fstat(file.fileno()).st_size != self._data + last:
                    raise ValueError("it is cut short")
                if header["features"]["dtype"] != STORED[dtype][0]:
                    raise ValueError(f"it holds {header['features']['dtype']}, not {dtype}")

                def read(name: str) -> NDArray[Any]:
                    """One tensor of the file, flat."""
                    entry = header[name]
                    begin, end = entry["data_offsets"]
                    file.seek(self._data + begin)
                    return np.frombuffer(file.read(end - begin), _NUMPY[entry["dtype"]])

                self.source, self.sample = read("source"), read("sample")
                self._text_end, self._crc = read("text_end"), read("crc")
                self.bad = [BadRow(*entry) for entry in parse_json(bytes(read("bad")))]
                self._image_end = (
                    read("image_end")
                    if "image_end" in header
                    else np.arange(1, len(self.sample) + 1)
                )
                self._text = self._data + header["text"]["data_offsets"][0]
                self.shape = tuple(header["features"]["shape"][1:])
        except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
            raise _damaged(path, str(error)) from None
        lengths = map(len, (self.source, self._text_end, self._crc, self._image_end))
        if {*lengths} != {len(self.sample)}:
            raise _damaged(path, "its arrays differ in length")

    def __len__(self) -> int:
        return len(self.sample)

    def read(self, fd: int, row: int) -> FeatureRow:
        """One row, from the file's open descriptor.

        Raises:
            DataError: if it is not what was written.
            OSError: if it cannot be read.
        """
        size = int(np.prod(self.shape)) * self._bits.itemsize
        begin = int(self._text_end[row - 1]) if row else 0
        first = int(self._image_end[row - 1]) if row else 0
        num_images = int(self._image_end[row]) - first
        data = os.pread(fd, num_images * size, self._data + first * size)
        text = os.pread(fd, int(self._text_end[row]) - begin, self._text + begin)
        if zlib.crc32(text, zlib.crc32(data)) != int(self._crc[row]):
            raise _damaged(self.path, f"the bytes of its row {row} are not those written (CRC32)")
        key, stored = parse_json(text)
        caption = stored if isinstance(stored, str) else parse_conversation(stored).dialogue
        features = np.frombuffer(data, self._bits).reshape(num_images, *self.shape)
        return FeatureRow(int(self.source[row]), int(self.sample[row]), key, caption, features)


def _damaged(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is no whole shard of a feature cache: {why}",
        fix=f"rm {path}, then run the same `mgpt4 data encode` again: it makes what is missing",
    )

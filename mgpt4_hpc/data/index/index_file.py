"""The index file: a safetensors file; its arrays are mapped into memory, not read.

Written once per shard list, in one pass with flat memory, onto a temporary name; a killed writer
leaves no index. Arrays, for n samples in s shards:

=============  ===============  ==========================================================
shard_first    int64[s + 1]     number of each shard's first sample; the last entry is n
shard_size     int64[s]         bytes
shard_mtime    int64[s]         nanoseconds; only to find changed shards, not in the digest
shard_digest   uint8[s, 16]     of keys and spans (see ``ShardScan.digest``)
key_end        int64[n]         end of each key in key_bytes
key_bytes      uint8[...]       all keys, UTF-8, one behind the other
blocks         uint32[n, 3]     begin of jpg, json, txt in 512-byte blocks; 0 = absent
lengths        uint32[n, 3]     bytes
crcs           uint32[n, 3]     CRC32; only with --verify
more_end       int64[n]         end of each sample's further images (KEY.1.jpg, ...) among all m;
                                this and the next three only if there are any
more_blocks    uint32[m]        begin of each, as in blocks
more_lengths   uint32[m]        bytes
more_crcs      uint32[m]        CRC32; only with --verify
listing        uint8[...]       JSON: shard names; (shard number, key, reason) of what is
                                quarantined; of each shard, the number of members that
                                belong to no sample; and (reason, extension, count, example) of
                                these (older files lack it)
=============  ===============  ==========================================================
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import shutil
import struct
import tempfile
from dataclasses import astuple
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mgpt4_hpc.data.index.scan import ShardScan
from mgpt4_hpc.data.index.temporary_output import remove_leftovers, scratch_path
from mgpt4_hpc.disk import fsync_folder
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.text_files import parse_json

FORMAT = "mgpt4-index-1"
_FAMILY = FORMAT.rstrip("0123456789")
_MOST_HEADER_BYTES = 1 << 20
"""Limit of a header; it has a few lines. The listing of the shards is an array."""
_DTYPES = {"I64": "<i8", "U32": "<u4", "U8": "u1"}
_SHAPES: dict[str, tuple[str, tuple[int, ...]]] = {
    "shard_first": ("I64", ()),
    "shard_size": ("I64", ()),
    "shard_mtime": ("I64", ()),
    "shard_digest": ("U8", (16,)),
    "key_end": ("I64", ()),
    "blocks": ("U32", (3,)),
    "lengths": ("U32", (3,)),
    "crcs": ("U32", (3,)),
    "key_bytes": ("U8", ()),
    "listing": ("U8", ()),
    "more_end": ("I64", ()),
    "more_blocks": ("U32", ()),
    "more_lengths": ("U32", ()),
    "more_crcs": ("U32", ()),
}
_CRCS = {"crcs", "more_crcs"}
_OPTIONAL = _CRCS | {"more_end", "more_blocks", "more_lengths"}


class IndexWriter:
    """Writes an index shard by shard; nothing appears under ``out`` before ``commit``.

    Args:
        out: the index file.
        name: of the source.
        root: folder that shard names are relative to.
        verified, decoded: what was checked.

    Attributes:
        num_samples: written up to now.
        quarantined: (shard number, key, reason) of them.
        left_out: of each shard, the fields of ``LeftOut`` of its members without a sample.
    """

    def __init__(self, out: Path, *, name: str, root: Path, verified: bool, decoded: bool) -> None:
        self.out = out
        self.meta = {
            "format": FORMAT,
            "name": name,
            "root": _portable_root(root, out),
            "verified": str(int(verified)),
            "decoded": str(int(decoded)),
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        # Nameless files: nothing is left of them when this process is killed.
        self._files: dict[str, IO[bytes]] = {
            name: tempfile.TemporaryFile(dir=out.parent)  # noqa: SIM115 - closed by __exit__
            for name in _SHAPES
            if verified or name not in _CRCS
        }
        self._digest = hashlib.blake2b(FORMAT.encode(), digest_size=16)
        self.num_samples = 0
        self._num_more = 0
        self._key_end = 0
        self._shards: list[str] = []
        self.quarantined: list[tuple[int, str, str]] = []
        self._num_ignored: list[int] = []
        self.left_out: list[list[tuple[str, str, int, str]]] = []

    def add(self, scan: ShardScan) -> None:
        """Append one shard."""
        digest = scan.digest()
        self._digest.update(digest)
        self._put("shard_first", np.asarray([self.num_samples]))
        self._put("shard_size", np.asarray([scan.size]))
        self._put("shard_mtime", np.asarray([scan.mtime_ns]))
        self._put("shard_digest", np.frombuffer(digest, dtype=np.uint8))
        ends = self._key_end + np.cumsum([len(key) for key in scan.keys], dtype=np.int64)
        self._put("key_end", ends)
        self._put("key_bytes", np.frombuffer(b"".join(scan.keys), dtype=np.uint8))
        self._put("blocks", scan.blocks)
        self._put("lengths", scan.lengths)
        if "crcs" in self._files:
            crcs = scan.crcs if scan.crcs is not None else np.zeros_like(scan.blocks)
            self._put("crcs", crcs)
        self._add_further(scan)
        if scan.keys:
            self._key_end = int(ends[-1])
        self.num_samples += len(scan.keys)
        number = len(self._shards)
        self._shards.append(scan.name)
        self.quarantined += [(number, entry.key, entry.reason) for entry in scan.quarantined]
        self._num_ignored.append(scan.num_ignored)
        self.left_out.append([astuple(entry) for entry in scan.left_out])

    def _add_further(self, scan: ShardScan) -> None:
        further = scan.further
        if further is None:
            self._put("more_end", np.full(len(scan.keys), self._num_more))
            return
        self._put("more_end", self._num_more + further.ends)
        self._put("more_blocks", further.blocks)
        self._put("more_lengths", further.lengths)
        if "more_crcs" in self._files:
            crcs = further.crcs if further.crcs is not None else np.zeros_like(further.blocks)
            self._put("more_crcs", crcs)
        self._num_more += len(further.blocks)

    def commit(self) -> None:
        """Put the file in its place, whole and on disk."""
        self._put("shard_first", np.asarray([self.num_samples]))
        listing = {
            "shards": self._shards,
            "quarantined": self.quarantined,
            "num_ignored": self._num_ignored,
            "left_out": self.left_out,
        }
        self._put("listing", np.frombuffer(json.dumps(listing).encode(), dtype=np.uint8))
        self.meta["digest"] = self._digest.hexdigest()
        header: dict[str, Any] = {"__metadata__": self.meta}
        offset = 0
        files = {
            name: file
            for name, file in self._files.items()
            if self._num_more or not name.startswith("more_")
        }
        for name, file in files.items():
            dtype, row = _SHAPES[name]
            size = file.tell()
            shape = [size // (np.dtype(_DTYPES[dtype]).itemsize * int(np.prod(row))), *row]
            span = [offset, offset + size]
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": span}
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        remove_leftovers(self.out)
        temporary = scratch_path(self.out)
        try:
            with temporary.open("xb") as whole:
                whole.write(struct.pack("<Q", len(text)) + text)
                for file in files.values():
                    file.seek(0)
                    shutil.copyfileobj(file, whole, 1 << 20)
                whole.flush()
                os.fsync(whole.fileno())
            temporary.replace(self.out)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        fsync_folder(self.out.parent)

    def _put(self, name: str, array: NDArray[Any]) -> None:
        self._files[name].write(array.astype(_DTYPES[_SHAPES[name][0]], copy=False).tobytes())

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for file in self._files.values():
            file.close()


def is_index(path: Path) -> bool:
    """Whether a file is a shard index of any version, even a damaged one: looks at its header."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MOST_HEADER_BYTES:
                return False
            header = parse_json(file.read(length))
            return str(header["__metadata__"]["format"]).startswith(_FAMILY)
    except (OSError, struct.error, ValueError, KeyError, TypeError):
        return False


def read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, str]]:
    """Map an index file: its arrays (read only, not yet loaded) and metadata.

    Raises:
        DataError: if it is missing, cut short, or no index of this format.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 8:
                raise _not_an_index(path, f"it has {size} bytes")
            memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise DataError(
            f"the index {path} cannot be opened: {error.strerror}",
            fix="build it with: mgpt4 data index SHARDS --out INDEX",
        ) from None
    (length,) = struct.unpack("<Q", memory[:8])
    try:
        header: dict[str, Any] = parse_json(memory[8 : 8 + length])
        meta: dict[str, str] = header.pop("__metadata__")
        if meta["format"] != FORMAT:
            version = meta["format"]
            raise _not_an_index(path, f"its format is {version!r}, this version reads {FORMAT!r}")
        arrays = {
            name: _map_array(memory, 8 + length, header[name], *_SHAPES[name])
            for name in _SHAPES
            if name in header or name not in _OPTIONAL
        }
        _check_arrays(arrays, meta)
    except (ValueError, KeyError, AttributeError, TypeError, IndexError) as error:
        why = f"it is damaged or cut short ({type(error).__name__}: {error})"
        raise _not_an_index(path, why) from None
    return arrays, meta


def _map_array(
    memory: mmap.mmap, start: int, entry: dict[str, Any], dtype_name: str, row: tuple[int, ...]
) -> NDArray[Any]:
    begin, end = entry["data_offsets"]
    dtype = np.dtype(_DTYPES[dtype_name])
    if entry["dtype"] != dtype_name or begin < 0 or start + end > len(memory):
        raise ValueError("an array ends behind the file's end")
    flat = np.frombuffer(memory, dtype, (end - begin) // dtype.itemsize, start + begin)
    return flat.reshape(-1, *row)


def _check_arrays(arrays: dict[str, NDArray[Any]], meta: dict[str, str]) -> None:
    """Raise ValueError or KeyError unless the arrays fit each other."""
    first, listing = arrays["shard_first"], parse_json(bytes(arrays["listing"]))
    num_shards, num_samples = len(listing["shards"]), int(first[-1])
    per_shard = [len(first) - 1, *(len(arrays[f"shard_{x}"]) for x in ("size", "mtime", "digest"))]
    per_sample = [len(arrays[x]) for x in ("key_end", "blocks", "lengths")]
    per_sample += [len(arrays["crcs"])] if "crcs" in arrays else []
    if {*per_shard} != {num_shards} or {*per_sample} != {num_samples}:
        raise ValueError("its arrays differ in length")
    if "more_end" in arrays:
        ends = [int(arrays["more_end"][-1]) if num_samples else 0]
        per_image = [
            len(arrays[x])
            for x in ("more_blocks", "more_lengths", "more_crcs")
            if x in arrays or x != "more_crcs"
        ]
        if len(arrays["more_end"]) != num_samples or {*per_image} != {*ends}:
            raise ValueError("its further images are incomplete")
    if num_samples and int(arrays["key_end"][-1]) != len(arrays["key_bytes"]):
        raise ValueError("its keys are incomplete")
    if {"name", "root", "digest", "verified", "decoded"} - meta.keys():
        raise ValueError("its metadata is incomplete")


def _not_an_index(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is not a usable shard index", why=why, fix=f"delete it and build it again: {path}"
    )


def _portable_root(root: Path, out: Path) -> str:
    """``root`` relative to the index's folder where it lies below it, so that both can be moved."""
    root, folder = root.resolve(), out.parent.resolve()
    return str(root.relative_to(folder)) if root.is_relative_to(folder) else str(root)

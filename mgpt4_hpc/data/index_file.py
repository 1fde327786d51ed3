"""The index file: a safetensors file whose arrays are mapped into memory, not read.

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
listing        uint8[...]       JSON: shard names, quarantine, ignored members
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
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mgpt4_hpc.data.scan import ShardScan
from mgpt4_hpc.errors import DataError

FORMAT = "mgpt4-index-1"
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
}


class IndexWriter:
    """Writes an index shard by shard; nothing appears under ``out`` before ``commit``.

    Args:
        out: the index file.
        name: of the source.
        root: folder that shard names are relative to.
        verified, decoded: what was checked.
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
        self._folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        names = [name for name in _SHAPES if verified or decoded or name != "crcs"]
        self._files: dict[str, IO[bytes]] = {
            name: (self._folder / name).open("wb") for name in names
        }
        self._digest = hashlib.blake2b(FORMAT.encode(), digest_size=16)
        self._num_samples = 0
        self._key_end = 0
        self._shards: list[str] = []
        self._quarantined: list[list[str]] = []
        self._num_ignored = 0

    def add(self, scan: ShardScan) -> None:
        """Append one shard."""
        digest = scan.digest()
        self._digest.update(digest)
        self._put("shard_first", np.asarray([self._num_samples]))
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
        if scan.keys:
            self._key_end = int(ends[-1])
        self._num_samples += len(scan.keys)
        self._shards.append(scan.name)
        self._quarantined += [[scan.name, entry.key, entry.reason] for entry in scan.quarantined]
        self._num_ignored += scan.num_ignored

    def commit(self) -> None:
        """Put the file in its place, whole and on disk."""
        self._put("shard_first", np.asarray([self._num_samples]))
        listing = {
            "shards": self._shards,
            "quarantined": self._quarantined,
            "num_ignored": self._num_ignored,
        }
        self._put("listing", np.frombuffer(json.dumps(listing).encode(), dtype=np.uint8))
        self.meta["digest"] = self._digest.hexdigest()
        header: dict[str, Any] = {"__metadata__": self.meta}
        offset = 0
        for name, file in self._files.items():
            dtype, row = _SHAPES[name]
            size = file.tell()
            file.close()
            shape = [size // (np.dtype(_DTYPES[dtype]).itemsize * int(np.prod(row))), *row]
            header[name] = {
                "dtype": dtype, "shape": shape, "data_offsets": [offset, offset + size],
            }  # fmt: skip
            offset += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        whole = self._folder / "index"
        with whole.open("wb") as file:
            file.write(struct.pack("<Q", len(text)) + text)
            for name in self._files:
                with (self._folder / name).open("rb") as part:
                    shutil.copyfileobj(part, file, 1 << 20)
            file.flush()
            os.fsync(file.fileno())
        whole.replace(self.out)
        sync_folder(self.out.parent)

    def _put(self, name: str, array: NDArray[Any]) -> None:
        self._files[name].write(array.astype(_DTYPES[_SHAPES[name][0]], copy=False).tobytes())

    def __enter__(self) -> IndexWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def sync_folder(folder: Path) -> None:
    """Fsync a folder, so that a rename in it survives a power cut."""
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


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
        header: dict[str, Any] = json.loads(memory[8 : 8 + length])
        meta = header.pop("__metadata__")
        form = meta["format"]
    except (ValueError, KeyError, AttributeError, TypeError):
        raise _not_an_index(path, "its header cannot be read") from None
    if form != FORMAT:
        raise _not_an_index(path, f"its format is {form!r}, this version reads {FORMAT!r}")
    arrays = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        if 8 + length + end > size:
            raise _not_an_index(path, f"it is cut short: {name} ends behind the file's end")
        dtype = np.dtype(_DTYPES[entry["dtype"]])
        flat = np.frombuffer(memory, dtype, (end - begin) // dtype.itemsize, 8 + length + begin)
        arrays[name] = flat.reshape(entry["shape"])
    return arrays, meta


def _not_an_index(path: Path, why: str) -> DataError:
    return DataError(
        f"{path} is not a usable shard index", why=why, fix=f"delete it and build it again: {path}"
    )


def _portable_root(root: Path, out: Path) -> str:
    """``root`` relative to the index's folder where it lies below it, so that both can be moved."""
    root, folder = root.resolve(), out.parent.resolve()
    return str(root.relative_to(folder)) if root.is_relative_to(folder) else str(root)

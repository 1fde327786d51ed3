"""`manifest.json`: what a checkpoint folder must hold, byte for byte, to count as one."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mgpt4_hpc.errors import CheckpointError

FORMAT = 1
MANIFEST_NAME = "manifest.json"
HASH_BYTES = 32
_ENTRY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class DamagedCheckpointError(CheckpointError):
    """A checkpoint folder is incomplete or its bytes are not the ones that were written."""


class UnreadableCheckpointError(CheckpointError):
    """The disk gives an I/O error: a bad sector, or a server that is away just now."""


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint: its size in bytes and its BLAKE2b hash in hexadecimal."""

    size: int
    blake2b: str


@dataclass(frozen=True)
class Manifest:
    """What one checkpoint holds.

    `files` maps an entry's name ("projector") to its record; the file is `NAME.safetensors`.
    `meta` is the caller's: counters, hashes of config, index, bundle and code, the attempt.
    """

    step: int
    files: Mapping[str, FileRecord]
    meta: Mapping[str, Any]

    @property
    def content(self) -> str:
        """Hash of all tensors, whatever the meta says: equal content, equal training state."""
        lines = "".join(f"{name}:{self.files[name].blake2b}\n" for name in sorted(self.files))
        return _blake2b(lines.encode())

    def to_bytes(self) -> bytes:
        """The manifest as JSON, sealed with a hash of itself.

        Raises:
            TypeError: the meta holds something that JSON does not know.
        """
        body: dict[str, Any] = {
            "format": FORMAT,
            "step": self.step,
            "content": self.content,
            "files": {
                name: {"size": record.size, "blake2b": record.blake2b}
                for name, record in self.files.items()
            },
            "meta": dict(self.meta),
        }
        body["digest"] = _blake2b(_canonical(body))
        return json.dumps(body, indent=1, sort_keys=True).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Read what `to_bytes` wrote.

        Raises:
            DamagedCheckpointError: not a manifest, or changed since it was written.
            CheckpointError: written by a newer format, which this code cannot judge.
        """
        try:
            body = json.loads(data)
            digest = body.pop("digest")
            if not isinstance(digest, str) or _blake2b(_canonical(body)) != digest:
                raise DamagedCheckpointError("manifest.json does not match its own hash")
            if body["format"] != FORMAT:
                raise CheckpointError(
                    f"checkpoint format {body['format']!r} is unknown",
                    why=f"this version reads format {FORMAT}",
                    fix="continue the run with the version of mgpt4-hpc that wrote it",
                )
            files = {
                _checked_entry(name): FileRecord(int(record["size"]), str(record["blake2b"]))
                for name, record in body["files"].items()
            }
            return cls(step=int(body["step"]), files=files, meta=dict(body["meta"]))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedCheckpointError(f"manifest.json cannot be read: {error!r}") from error


def file_name(entry: str) -> str:
    """The file that holds an entry's tensors.

    Raises:
        ValueError: the name would not be a plain file name.
    """
    return f"{_checked_entry(entry)}.safetensors"


def new_hash() -> hashlib.blake2b:
    """An empty hash of the kind that manifests record."""
    return hashlib.blake2b(digest_size=HASH_BYTES)


def _blake2b(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=HASH_BYTES).hexdigest()


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode()


def _checked_entry(name: str) -> str:
    # A manifest is read from a folder that others may have touched: no way out of that folder.
    if not _ENTRY.fullmatch(name):
        raise ValueError(f"{name!r} cannot name a checkpoint's file")
    return name

"""Reading checkpoints: hashes are trusted, names are not, and nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from mgpt4_hpc.checkpoint.manifest import (
    MANIFEST_NAME,
    DamagedCheckpointError,
    FileRecord,
    Manifest,
    UnreadableCheckpointError,
    file_name,
    new_hash,
)
from mgpt4_hpc.errors import CheckpointError

STEP_NAME = re.compile(r"step-(\d{8,})")
PIECE = 8 << 20
"""Bytes per read or write: a hash soon overlaps the disk, and calls are few."""


def read_checkpoint(path: Path, *, keep: bool) -> tuple[Manifest, dict[str, dict[str, Tensor]]]:
    """Read a checkpoint and compare every byte's hash with its manifest.

    Args:
        path: its folder.
        keep: also return the tensors, from the very bytes that were verified.

    Returns:
        The manifest; entry to named tensors (empty without `keep`).

    Raises:
        DamagedCheckpointError: something is missing or differs; the message says what.
        UnreadableCheckpointError: an I/O error, which may pass or stay.
        CheckpointError: it cannot be judged, as with a newer format or without permission.
    """
    files: dict[str, dict[str, Tensor]] = {}
    try:
        manifest = Manifest.from_bytes((path / MANIFEST_NAME).read_bytes())
        official = STEP_NAME.fullmatch(path.name)
        if official and int(official[1]) != manifest.step:
            raise DamagedCheckpointError(f"its manifest is of step {manifest.step}")
        for entry, record in manifest.files.items():
            data = _read_file(path / file_name(entry), record, keep=keep)
            if keep:
                files[entry] = safetensors.torch.load(data)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise DamagedCheckpointError(f"{Path(error.filename).name} is missing") from error
    except SafetensorError as error:
        raise DamagedCheckpointError(f"a file is not safetensors: {error}") from error
    except OSError as error:
        if error.errno == errno.EIO:
            raise UnreadableCheckpointError(f"the disk cannot read {path}: {error}") from error
        raise CheckpointError(
            f"cannot read the checkpoint {path}: {error}",
            why="it may be intact, so no older one is taken in its place",
            fix="check the mount and the permissions, then resume",
        ) from error
    return manifest, files


def _read_file(path: Path, record: FileRecord, *, keep: bool) -> bytes:
    digest = new_hash()
    kept: list[bytes] = []
    size = 0
    with path.open("rb", buffering=0) as stream:
        with contextlib.suppress(OSError):
            # Ask the disk, not the memory in which the writer just left it.
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        size_now = os.fstat(stream.fileno()).st_size
        if size_now != record.size:
            raise DamagedCheckpointError(
                f"{path.name} has {size_now} bytes instead of {record.size}"
            )
        while piece := stream.read(PIECE):
            digest.update(piece)
            size += len(piece)
            if keep:
                kept.append(piece)
    if size != record.size or digest.hexdigest() != record.blake2b:
        raise DamagedCheckpointError(f"{path.name} does not match its hash")
    return b"".join(kept)

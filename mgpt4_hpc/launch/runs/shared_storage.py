"""Whether other nodes can see a folder, as far as its file system's type shows."""

from __future__ import annotations

from pathlib import Path

from mgpt4_hpc.text_files import text_of

IN_MEMORY = frozenset({"tmpfs", "ramfs", "devtmpfs"})
"""Types that no other node sees and that a reboot empties."""
_OF_ONE_MACHINE = frozenset({"overlay", "aufs", "ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs"})
"""Disks of one machine; one that is exported over NFS is nfs on the other nodes."""

_MOUNTS = Path("/proc/mounts")


def nearest_existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def file_system(path: Path, mounts: str | None = None) -> str:
    """Type of the file system that holds ``path``; empty if that is not known.

    Args:
        path: a folder; its nearest parent that exists counts.
        mounts: text of ``/proc/mounts``; read if not given.
    """
    if mounts is None:
        mounts = text_of(_MOUNTS) or ""
    place = nearest_existing(path).resolve()
    best, kind = -1, ""
    for line in mounts.splitlines():
        words = line.split()
        if len(words) < 3:
            continue
        # Spaces and the like stand as \040.
        at = Path(words[1].encode().decode("unicode_escape"))
        # Of two mounts at one place the later hides the earlier.
        if place.is_relative_to(at) and len(at.parts) >= best:
            best, kind = len(at.parts), words[2]
    return kind


def not_shared(path: Path, mounts: str | None = None) -> str:
    """Why other nodes will probably not see ``path``; empty if they may."""
    kind = file_system(path, mounts)
    if kind in IN_MEMORY:
        return f"lies in this machine's memory ({kind})"
    if kind in _OF_ONE_MACHINE:
        return f"looks like a disk of this machine ({kind})"
    return ""

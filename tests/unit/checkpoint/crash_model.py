"""A disk that loses power: which states can a log of file operations leave behind?

The model is stricter than any filesystem that we know of, so that what survives here survives
there. A directory is a table of names; files and directories live on without a name. An operation
is certain to be on the disk only after an fsync that covers it: a file's fsync covers its data
and nothing else (not even its own name), a directory's fsync covers its names. Anything later
may be there or not, each operation independently of all others, in any combination. The last
write that is not certain may also be torn.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path

from mgpt4_hpc.checkpoint.filesystem import FileSystem

ROOT = 0
WHOLE, HALF, SHORT, ZEROS = "whole", "half", "all but one byte", "right length, all zeros"
TEARS = (HALF, SHORT, ZEROS)
RENAME = "rename in commit"


@dataclass(frozen=True)
class Op:
    """One operation on inode `node`, or a remark of the scenario (`durable`, `rot`)."""

    kind: str
    node: int = -1
    parent: int = -1
    name: str = ""
    old_parent: int = -1
    old_name: str = ""
    offset: int = 0
    data: bytes = b""
    step: int = -1
    site: str = ""

    @property
    def is_fsync(self) -> bool:
        return self.kind in ("fsync", "fsync_dir")


class Killed(BaseException):
    """The process got a kill -9; not an Exception, so that no handler cleans up."""


class RecordingFileSystem(FileSystem):
    """Does what it is asked to, and logs it. After `kill_after` operations it is killed."""

    def __init__(self, root: Path) -> None:
        self.log: list[Op] = []
        self.kill_after: int | None = None
        self._ids = {root: ROOT}
        self._by_fd: dict[int, Path] = {}
        self._sizes: dict[int, int] = {}

    def remark(self, kind: str, step: int = -1, path: Path | None = None, at: int = -1) -> None:
        node = -1 if path is None else self._ids[path]
        self.log.append(Op(kind, node, step=step, offset=at))

    def mkdir(self, path: Path) -> None:
        self._tick()
        super().mkdir(path)
        self._entry("mkdir", path, len(self.log) + 1)

    def create(self, path: Path) -> int:
        self._tick()
        fd = super().create(path)
        self._by_fd[fd] = path
        self._entry("create", path, len(self.log) + 1)
        return fd

    def write(self, fd: int, data: memoryview) -> None:
        self._tick()
        super().write(fd, data)
        node = self._ids[self._by_fd[fd]]
        offset = self._sizes.get(node, 0)
        self._sizes[node] = offset + data.nbytes
        self.log.append(Op("write", node, offset=offset, data=bytes(data)))

    def fsync(self, fd: int) -> None:
        self._tick()
        path = self._by_fd[fd]
        self.log.append(Op("fsync", self._ids[path], site=f"{_caller()} {path.name}"))

    def rename(self, source: Path, target: Path) -> None:
        self._tick()
        super().rename(source, target)
        moved = {
            path: target / path.relative_to(source)
            for path in self._ids
            if path.is_relative_to(source)
        }
        node = self._ids[source]
        for old, new in moved.items():
            self._ids[new] = self._ids.pop(old)
        self.log.append(
            Op(
                *("rename", node, self._ids[target.parent], target.name),
                old_parent=self._ids[source.parent],
                old_name=source.name,
                site=f"rename in {_caller()}",
            )
        )

    def unlink(self, path: Path) -> None:
        self._tick()
        super().unlink(path)
        self._entry("unlink", path, self._ids.pop(path))

    def rmdir(self, path: Path) -> None:
        self._tick()
        super().rmdir(path)
        self._entry("rmdir", path, self._ids.pop(path))

    def fsync_dir(self, path: Path) -> None:
        self._tick()
        self.log.append(Op("fsync_dir", self._ids[path], site=_caller()))

    def _entry(self, kind: str, path: Path, node: int) -> None:
        if kind in ("mkdir", "create"):
            self._ids[path] = node
        self.log.append(Op(kind, node, self._ids[path.parent], path.name))

    def _tick(self) -> None:
        if self.kill_after is not None:
            if self.kill_after == 0:
                raise Killed
            self.kill_after -= 1


def _caller() -> str:
    return sys._getframe(2).f_code.co_name


Tree = tuple[tuple[str, "Tree | bytes"], ...]


@dataclass(frozen=True)
class DiskState:
    """What a reader finds after a crash, and what had been promised before it."""

    tree: Tree
    durable: int
    """Newest step reported durable whose bytes the disk has not lost since; -1 for none."""
    rotten: frozenset[int]
    """Steps whose bytes the disk changed by itself: these may be found damaged."""

    def write_to(self, folder: Path) -> None:
        folder.mkdir()
        _write_tree(self.tree, folder)


def _write_tree(tree: Tree, folder: Path) -> None:
    for name, child in tree:
        if isinstance(child, bytes):
            (folder / name).write_bytes(child)
        else:
            (folder / name).mkdir()
            _write_tree(child, folder / name)


@dataclass(frozen=True)
class Log:
    """Operations, of which the first `settled` happened before the part under test."""

    ops: list[Op]
    settled: int = 0

    def without(self, site: str) -> Log:
        """What a program would log that lacks the fsync or rename of one place in its source."""
        settled = [op for op in self.ops[: self.settled] if op.site != site]
        return Log([op for op in self.ops if op.site != site], len(settled))

    def written_in_place(self) -> Log:
        """What a program would log that writes under the final name at once."""
        final = {op.node: op.name for op in self.ops if op.site == RENAME}
        named = [
            replace(op, name=final[op.node]) if op.kind == "mkdir" and op.node in final else op
            for op in self.ops
        ]
        return Log(named, self.settled).without(RENAME)


def crash_states(log: Log, seen: set[DiskState]) -> Iterator[DiskState]:
    """All states that a power cut can leave after each prefix of a log, none of them twice.

    Every combination of the operations not yet certain, times the tears of the last write.

    Args:
        log: what was done.
        seen: states to leave out; filled with those that are yielded.
    """
    for length in range(log.settled, len(log.ops) + 1):
        prefix = log.ops[:length]
        pending = _pending(prefix)
        last_write = max((i for i in pending if prefix[i].kind == "write"), default=None)
        durable, rotten = _promises(prefix)
        for chosen in product((False, True), repeat=len(pending)):
            absent = {i for i, there in zip(pending, chosen, strict=True) if not there}
            tears = [WHOLE]
            if last_write is not None and last_write not in absent:
                tears += TEARS
            for tear in tears:
                tree = _replay(prefix, absent, last_write, tear)
                state = DiskState(tree, durable, rotten)
                if state not in seen:
                    seen.add(state)
                    yield state


def _pending(prefix: list[Op]) -> list[int]:
    """Indices of the operations that a power cut now may undo."""
    pending: list[int] = []
    for i, op in enumerate(prefix):
        if op.kind == "fsync":
            pending = [j for j in pending if prefix[j].kind != "write" or prefix[j].node != op.node]
        elif op.kind == "fsync_dir":
            settled = {j for j in pending if op.node in (prefix[j].parent, prefix[j].old_parent)}
            # Nobody can see into a directory or file whose name is gone for certain.
            gone = {prefix[j].node for j in settled if prefix[j].kind in ("rmdir", "unlink")}
            pending = [
                j
                for j in pending
                if j not in settled and prefix[j].parent not in gone and prefix[j].node not in gone
            ]
        elif op.kind not in ("durable", "rot"):
            pending.append(i)
    return pending


def _promises(prefix: list[Op]) -> tuple[int, frozenset[int]]:
    durable: set[int] = set()
    rotten: set[int] = set()
    for op in prefix:
        if op.kind == "durable":
            durable.add(op.step)
        elif op.kind == "rot":
            durable.discard(op.step)
            rotten.add(op.step)
    return max(durable, default=-1), frozenset(rotten)


@dataclass
class _Disk:
    names: dict[int, dict[str, int]] = field(default_factory=lambda: {ROOT: {}})
    data: dict[int, bytearray] = field(default_factory=dict)


def _replay(prefix: list[Op], absent: set[int], last_write: int | None, tear: str) -> Tree:
    disk = _Disk()
    for i, op in enumerate(prefix):
        if op.kind == "mkdir":
            disk.names[op.node] = {}
        elif op.kind == "create":
            disk.data[op.node] = bytearray()
        if i not in absent:
            _apply(disk, op, tear if i == last_write else WHOLE)
    return _tree(disk, ROOT)


def _apply(disk: _Disk, op: Op, tear: str) -> None:
    if op.kind in ("mkdir", "create"):
        disk.names[op.parent][op.name] = op.node
    elif op.kind in ("unlink", "rmdir"):
        if disk.names[op.parent].get(op.name) == op.node:
            del disk.names[op.parent][op.name]
    elif op.kind == "rename":
        if disk.names[op.old_parent].get(op.old_name) == op.node:
            del disk.names[op.old_parent][op.old_name]
        disk.names[op.parent][op.name] = op.node
    elif op.kind == "write":
        data = {
            WHOLE: op.data,
            HALF: op.data[: len(op.data) // 2],
            SHORT: op.data[:-1],
            ZEROS: bytes(len(op.data)),
        }[tear]
        content = disk.data[op.node]
        content.extend(bytes(max(0, op.offset - len(content))))
        content[op.offset : op.offset + len(data)] = data
    elif op.kind == "rot" and op.offset < len(disk.data[op.node]):
        disk.data[op.node][op.offset] ^= 0x40


def _tree(disk: _Disk, node: int) -> Tree:
    return tuple(
        (name, _tree(disk, child) if child in disk.names else bytes(disk.data[child]))
        for name, child in sorted(disk.names[node].items())
    )

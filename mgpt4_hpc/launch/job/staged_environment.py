"""``launch.stage_env``: the Python environment as one file, unpacked on each node's own disk.

A rank makes 23,000 calls on the environment's folder until its first step, each a round trip where
that lies on Lustre or NFS. To read one file and unpack it takes seconds, for all ranks of a node.

The file is made once per content at submission, beside the runs. Each start of a job compares the
environment with it: the batch script runs ``python -m mgpt4_hpc.launch.job.staged_environment``.
``stage_environment.sh``, in each task's launcher, unpacks it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import tarfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.stop_signals import STOP_SIGNALS

PACK_VARIABLE = "MGPT4_ENV_PACK"
"""The packed environment, for the tasks; empty or unset where the shared one has to serve."""

_SYSTEM = Path("/usr")
"""A Python in here is on each node's own disk already."""

_KEPT_DAYS = 30
"""Packs that no job has used for this time are removed when another is made."""

_THREADS = 16
"""Calls at once; on a shared file system each waits for an answer."""


@dataclass(frozen=True)
class Tree:
    """One folder of an environment.

    Attributes:
        root: where it lies.
        name: its folder in the pack.
        left_out: paths in it that are not packed.
    """

    root: Path
    name: str
    left_out: frozenset[str] = frozenset()


def environment_trees(prefix: Path | None = None, base: Path | None = None) -> list[Tree]:
    """The folders that a Python needs: its environment's, and that of the Python beneath a venv.

    Args:
        prefix: of the environment, this process's unless given.
        base: of the Python beneath it.

    Raises:
        MgptError: if it is the system's own Python, which no node has to unpack.
    """
    prefix, base = prefix or Path(sys.prefix), base or Path(sys.base_prefix)
    if prefix == _SYSTEM:
        raise MgptError(f"Python's folder is {prefix}, which each node has")
    conda = frozenset({"pkgs", "envs"})
    trees = [Tree(prefix, "environment", conda)]
    if base not in (prefix, _SYSTEM):
        config = (prefix / "pyvenv.cfg").read_text(encoding="utf-8").replace(" ", "").lower()
        library = f"lib/python{sys.version_info.major}.{sys.version_info.minor}"
        unused = {f"{library}/test"}  # and the static library, for programs that embed Python
        unused |= {str(path.relative_to(base)) for path in (base / library).glob("config-*")}
        if "include-system-site-packages=true" not in config:
            unused.add(f"{library}/site-packages")
        trees.append(Tree(base, "base", conda | unused))
    return trees


def environment_digest(trees: list[Tree]) -> str:
    """Hex digest of names, sizes and times of all files, byte code excepted: Python writes that."""
    digest = hashlib.blake2b(digest_size=16)
    for tree in trees:
        lines = [
            f"{tree.name}/{path} {state.st_mode:o} {state.st_size} {state.st_mtime_ns}\n"
            for path, state in _entries(tree)
            if not path.endswith(".pyc") and not stat.S_ISDIR(state.st_mode)
        ]
        digest.update("".join(sorted(lines)).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def pack_folder(runs_dir: Path) -> Path:
    """Where this user's packs lie."""
    return runs_dir / f".mgpt4-env-{os.getuid()}"


def pack_environment(runs_dir: Path, trees: list[Tree] | None = None) -> Path:
    """Make the pack of this environment unless it is there; returns its path.

    Args:
        runs_dir: beside whose runs it lies.
        trees: of :func:`environment_trees`.

    Raises:
        MgptError: if it cannot be made, or the environment changed meanwhile.
    """
    trees = environment_trees() if trees is None else trees
    folder = pack_folder(runs_dir)
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        _assert_private(folder)
        digest = environment_digest(trees)
        pack = folder / f"{digest}.tar"
        if pack.exists():
            os.utime(pack)
            return pack
        _remove_unused(folder)
        partial = folder / f".{digest}.{os.uname().nodename}-{os.getpid()}"
        try:
            _write_pack(partial, trees)
            if environment_digest(trees) != digest:
                raise MgptError("the environment changed while it was packed", fix="try again")
            partial.rename(pack)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise MgptError(
            f"the environment could not be packed in {folder}: {error.strerror or error}",
            fix="check space and quota",
        ) from error
    return pack


def find_pack(runs_dir: Path) -> Path:
    """The pack of this environment as it is now.

    Raises:
        MgptError: if there is none, because the environment changed.
        OSError: if the environment or the folder cannot be read.
    """
    folder = pack_folder(runs_dir)
    pack = folder / f"{environment_digest(environment_trees())}.tar"
    if not pack.exists():
        raise MgptError(
            f"{folder} has no pack of {sys.prefix} as it is now",
            why="the environment changed, or the pack was removed",
            fix="`mgpt4 resume` packs it",
        )
    _assert_private(folder)
    os.utime(pack)
    return pack


def shell_lines(place: str, python: str = sys.executable) -> list[str]:
    """Lines of a launcher script that set ``staged`` to the Python on this node's disk, or empty.

    Args:
        place: ``launch.stage_env``: a folder, perhaps with environment variables.
        python: the shared environment's.
    """
    text = Path(__file__).with_name("stage_environment.sh").read_text(encoding="utf-8")
    program = os.path.relpath(python, sys.prefix)
    return [
        f"pack=${{{PACK_VARIABLE}:-}}",
        f"program={_quote(f'environment/{program}')}",
        f'place="{_expandable(place)}"',
        *text.replace("@SIGNALS@", " ".join(STOP_SIGNALS)).splitlines(),
    ]


def _quote(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def _expandable(place: str) -> str:
    """The path within double quotes, where a shell expands variables and nothing else."""
    return "".join(f"\\{c}" if c in '\\`"' else c for c in place).replace("$(", "\\$(")


def _assert_private(folder: Path) -> None:
    """Others must not be able to exchange what a job unpacks and executes."""
    state = folder.lstat()
    if not stat.S_ISDIR(state.st_mode) or state.st_uid != os.getuid() or state.st_mode & 0o022:
        raise MgptError(
            f"{folder} is another user's, or others may write there",
            fix=f"remove it, or chmod 700 {folder}",
        )


def _remove_unused(folder: Path) -> None:
    for path in folder.iterdir():
        if time.time() - path.stat().st_mtime > _KEPT_DAYS * 86400:
            path.unlink(missing_ok=True)


def _entries(tree: Tree) -> Iterator[tuple[str, os.stat_result]]:
    """Path inside the tree and state of everything in it, folders included."""

    def listing(folder: str) -> list[tuple[str, os.stat_result]]:
        """Path and state of each entry of one folder; symbolic links are not followed."""
        with os.scandir(tree.root / folder) as scanned:
            return [
                (
                    f"{folder}/{entry.name}" if folder else entry.name,
                    entry.stat(follow_symlinks=False),
                )
                for entry in scanned
            ]

    level = [""]
    with ThreadPoolExecutor(_THREADS) as pool:
        while level:
            entries = [entry for each in pool.map(listing, level) for entry in each]
            entries = [(path, state) for path, state in entries if path not in tree.left_out]
            yield from entries
            level = [path for path, state in entries if stat.S_ISDIR(state.st_mode)]


def _write_pack(target: Path, trees: list[Tree]) -> None:
    with target.open("xb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
            for tree in trees:
                for path, state in sorted(_entries(tree)):
                    name = f"{tree.name}/{path}"
                    if stat.S_ISLNK(state.st_mode):
                        _add_link(tar, tree.root / path, name, trees)
                    else:
                        tar.add(tree.root / path, arcname=name, recursive=False)
        file.flush()
        os.fsync(file.fileno())


def _add_link(tar: tarfile.TarFile, path: Path, name: str, trees: list[Tree]) -> None:
    """A link into the pack stays inside it; a file elsewhere, as in uv's cache, comes along."""
    info = tar.gettarinfo(path, arcname=name)
    target = path.resolve()
    for tree in trees:
        root = tree.root.resolve()
        if target.is_relative_to(root):
            inside = Path(tree.name, target.relative_to(root))
            info.linkname = os.path.relpath(inside, Path(name).parent)
            tar.addfile(info)
            return
    if target.is_file() and not target.is_relative_to(_SYSTEM):
        info = tar.gettarinfo(target, arcname=name)
        with target.open("rb") as file:
            tar.addfile(info, file)
        return
    tar.addfile(info)


def main() -> int:
    """Entry of the batch script's line: prints the pack's path; nothing, and why, without one."""
    try:
        print(find_pack(Path(sys.argv[1]).parent))
    except (MgptError, OSError) as error:
        print(f"launch.stage_env: {error}: using the shared environment", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

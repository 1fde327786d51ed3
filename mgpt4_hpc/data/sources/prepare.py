"""A source's path, whatever it is, to an index: pack if need be, index if need be."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

from mgpt4_hpc.config.streams import is_url
from mgpt4_hpc.data.index.index import ScanOptions, ShardIndex, build_index, no_samples
from mgpt4_hpc.data.index.index_file import is_index
from mgpt4_hpc.data.index.shard_list import expand_shards
from mgpt4_hpc.data.index.temporary_output import scratch_beside
from mgpt4_hpc.data.sources.pack import (
    CAPTION_FILE,
    IMAGE_FOLDER,
    is_align_folder,
    pack_align_folder,
)
from mgpt4_hpc.disk import fsync_folder, sync_tree
from mgpt4_hpc.errors import DataError, StorageTrouble
from mgpt4_hpc.resources import expand_toy

_FINGERPRINT = "packed-from"


def prepare_source(
    name: str,
    path: str | Path,
    index: Path | None,
    work_dir: Path,
    *,
    workers: int = 1,
    on_shard: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """The index of a source, built where there is none.

    Args:
        name: of the source.
        path: shards (see ``expand_shards``) or a folder in cc_sbu_align's layout, which is packed
            into ``work_dir`` first.
        index: an index that exists already; it is opened to see that it can be.
        work_dir: for what has to be made. Everything there appears complete or not at all, so a
            killed call is simply repeated; a repeated call makes only what changed.
        workers: processes for indexing.
        on_shard: see ``build_index``.

    Raises:
        DataError: if the source cannot be used, or has no usable sample; caused by an OSError if
            storage failed in a way that may pass while shards were listed or a folder packed.
        StorageTrouble: if a shard cannot be read for half a minute.
    """
    if index is not None:
        return _usable(Path(index), name)
    source = Path(expand_toy(str(path)))
    if is_align_folder(source):
        shards = _packed(source, work_dir / f"{name}-shards")
    else:
        shards = expand_shards(path, also="an unpacked cc_sbu_align folder")
    out = work_dir / f"{name}.index"
    if not is_index(out):
        out.unlink(missing_ok=True)  # this run made it, and a power loss took its content
    try:
        build_index(
            shards,
            out,
            ScanOptions(workers=workers, storage_may_fail=False),
            name=name,
            on_shard=on_shard,
        )
    except StorageTrouble as error:
        raise StorageTrouble(
            f"the source {name!r} cannot be indexed: {error.what}",
            why="an index without what cannot be read just now would be another data set",
            fix="see to the storage; to do without a shard, set the source's index to one that "
            "`mgpt4 data index` makes: it leaves out what cannot be read",
        ) from error
    return _usable(out, name)


def known_difference(name: str, path: str, index: Path | None, work_dir: Path, digest: str) -> str:
    """How :func:`prepare_source` would find another index than that of ``digest``.

    Looks at names, sizes and times of the shards. Empty where they do not differ in these, or must
    be read to know.

    Raises:
        DataError, OSError: the index or a shard is missing.
    """
    if is_url(path):
        return f"stream of {path}" if digest != f"stream of {path}" else ""
    if index is not None:
        given = ShardIndex.open(index).digest
        return given if given != digest else ""
    out = work_dir / f"{name}.index"
    if not out.is_file() or is_align_folder(Path(expand_toy(path))):
        return ""
    shards = [shard.absolute() for shard in expand_shards(path)]
    own = ShardIndex.open(out)
    if own.digest == digest:
        root = os.path.commonpath([shard.parent for shard in shards])
        listed = [(os.path.relpath(shard, root), shard.stat().st_size) for shard in shards]
        held = [(own.shard_names[i], own.shard_size(i)) for i in range(own.num_shards)]
        return "" if listed == held else "that of other shards"
    # A start that was refused has indexed other shards; are these the ones?
    now = [(str(shard), shard.stat().st_mtime_ns) for shard in shards]
    then = [(os.path.abspath(own.shard_path(i)), own.shard_mtime(i)) for i in range(own.num_shards)]  # noqa: PTH100
    return own.digest if now == then else ""


def _usable(path: Path, name: str) -> Path:
    index = ShardIndex.open(path)
    if index.num_samples == 0:
        raise no_samples(f"the {index.num_shards} shards of the source {name!r}", index.left_out)
    return path


def _packed(source: Path, out: Path) -> list[Path]:
    """Shards of a folder, packed again if it changed."""
    fingerprint = _fingerprint(source)
    mark = out / _FINGERPRINT
    if mark.is_file() and mark.read_bytes() == f"{fingerprint}\n{_sizes(out)}".encode():
        return sorted(out.glob("*.tar"))
    out.parent.mkdir(parents=True, exist_ok=True)
    with scratch_beside(out) as holder:
        fresh = holder / "fresh"
        pack_align_folder(source, fresh)
        (fresh / _FINGERPRINT).write_text(f"{fingerprint}\n{_sizes(fresh)}")
        sync_tree(fresh)
        if out.exists():
            shutil.rmtree(out)
        fresh.rename(out)
    fsync_folder(out.parent)
    return sorted(out.glob("*.tar"))


def _sizes(packed: Path) -> str:
    """Digest of the shards that were made: one may have been cut since."""
    return "".join(f"{path.name} {path.stat().st_size}\n" for path in sorted(packed.glob("*.tar")))


def _fingerprint(source: Path) -> str:
    """Digest of the captions' content and the images' names, sizes and times."""
    state = hashlib.blake2b((source / CAPTION_FILE).read_bytes(), digest_size=16)
    try:
        with os.scandir(source / IMAGE_FOLDER) as entries:
            files = sorted((e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in entries)
    except OSError as error:
        raise DataError(
            f"{source / IMAGE_FOLDER} cannot be read: {error.strerror}",
            fix=f"a folder with {CAPTION_FILE} needs {IMAGE_FOLDER}/ID.jpg beside it",
        ) from None
    state.update(repr(files).encode())
    return state.hexdigest()

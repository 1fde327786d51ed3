"""A folder of images and texts into tar shards.

It is laid out as cc_sbu_align (``filter_cap.json`` and ``image/ID.jpg``), or holds pairs,
``KEY.jpg`` with ``KEY.txt`` or ``KEY.json``. Images of one's own may be of any format that is
read, under any spelling of their extension.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from mgpt4_hpc.data.images.formats import ImageFolder, suffix_of
from mgpt4_hpc.data.index.caption import BYTE_ORDER_MARK, CaptionError, is_visible, sample_text
from mgpt4_hpc.data.index.left_out import LeftOut, add_up
from mgpt4_hpc.data.index.temporary_output import scratch_beside
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.formatting import beside
from mgpt4_hpc.retry import is_transient
from mgpt4_hpc.text_files import NotUtf8, parse_json, read_utf8

CAPTION_FILE = "filter_cap.json"
IMAGE_FOLDER = "image"
SAMPLES_PER_SHARD = 1000
_TEXTS = ("json", "txt")

_Sample = tuple[str, Path, dict[str, bytes]]
"""Key, image, and the other members of a sample by their extension."""


def is_align_folder(path: Path) -> bool:
    """Whether a folder is laid out as cc_sbu_align."""
    return (path / CAPTION_FILE).is_file()


class PackedShards(NamedTuple):
    """What packing made.

    Attributes:
        left_out: files beside the samples that were not used.
        bad: why conversations are not there, if that was asked for.
    """

    shards: list[Path]
    num_samples: int
    left_out: Sequence[LeftOut] = ()
    bad: Sequence[str] = ()


def require_empty(out: Path) -> None:
    """Raise DataError unless ``out`` does not exist or is an empty folder."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out} is not empty", fix="choose another folder or remove it")


def pack_align_folder(
    src: Path, out: Path, *, samples_per_shard: int = SAMPLES_PER_SHARD
) -> PackedShards:
    """Pack a folder in cc_sbu_align's layout into shards under ``out``.

    Every image is decoded once to see that it can be. The same folder gives the same bytes.

    Args:
        src: holds ``filter_cap.json`` (``{"annotations": [{"image_id", "caption"}, ...]}``) and
            ``image/ID.jpg``, or another extension of an image.
        out: folder for the shards; it must not exist or be empty. It appears complete or not at
            all.
        samples_per_shard: the last shard may have fewer.

    Raises:
        DataError: naming every missing image, duplicate id, empty caption and bad image at once.
    """
    require_empty(out)
    annotations = read_annotations(src)
    images = list_align_images(src)
    samples, faults = _checked(images, annotations)
    if faults:
        what = f"{len(faults)} of the {len(annotations)} pairs of {src}"
        raise unusable(what, faults, f"repair them, or remove them from {CAPTION_FILE}")
    _write(out, samples, samples_per_shard)
    return PackedShards(sorted(out.glob("*.tar")), len(samples), left_out_of_align(src))


def pack_pairs(src: Path, out: Path, *, samples_per_shard: int = SAMPLES_PER_SHARD) -> PackedShards:
    """Pack a folder of images, each with a text of its name, into shards under ``out``.

    Every image is decoded and every text parsed. A dot in a name becomes ``_`` in the key.

    Args:
        src: holds ``KEY.jpg``, or another extension of an image, and ``KEY.txt`` or ``KEY.json``.
        out: as of :func:`pack_align_folder`.
        samples_per_shard: the last shard may have fewer.

    Raises:
        DataError: if there is no pair, or naming every one that is unusable at once.
    """
    require_empty(out)
    try:
        images, files = ImageFolder(src), sorted(src.iterdir())
    except OSError as error:
        raise DataError(f"{src} cannot be read: {error.strerror}{beside(src)}") from error
    texts: dict[str, dict[str, Path]] = {}
    for path in files:
        if path.name.startswith(".") or path.is_dir():  # "._KEY.jpg" holds what macOS adds
            continue
        if suffix_of(path.name) in _TEXTS and images.find(path.stem):
            texts.setdefault(path.stem, {})[suffix_of(path.name)] = path
    if not texts:
        raise DataError(
            f"{src} has no image with a text of the same name",
            fix="give a folder of pairs, KEY.jpg with KEY.txt or KEY.json, or the one that holds "
            f"{CAPTION_FILE} and {IMAGE_FOLDER}/",
        )
    samples: list[_Sample] = []
    faults, seen, used = [], set[str](), set[Path]()
    for stem, members in texts.items():
        key, found = stem.replace(".", "_"), images.find(stem)
        try:
            data = {kind: path.read_bytes() for kind, path in members.items()}
        except OSError as error:
            faults.append(f"{stem}: {error.filename}: {error.strerror}")
            continue
        twice = f"its key {key} occurs twice: a dot becomes _" if key in seen else ""
        fault = twice or _id_fault(key, seen) or _text_fault(data)
        fault = fault or _image_fault(images, stem, found)
        faults += [f"{stem}: {fault}"] if fault else []
        samples.append((key, found[0], data))
        seen.add(key)
        used |= {found[0], *members.values()}
    if faults:
        what = f"{len(faults)} of the {len(texts)} pairs of {src}"
        raise unusable(what, faults, "repair them, or move them elsewhere")
    _write(out, samples, samples_per_shard)
    left_out = [LeftOut("it is in no pair of an image and a text of its name", suffix_of(path.name),
                        1, path.name) for path in files if path not in used]  # fmt: skip
    return PackedShards(sorted(out.glob("*.tar")), len(samples), add_up(left_out))


def _text_fault(data: dict[str, bytes]) -> str:
    try:
        sample_text(data.get("json"), data.get("txt"), num_images=1)
    except CaptionError as error:
        return str(error)
    return ""


def unusable(what: str, faults: Sequence[str], fix: str, most: int = 10) -> DataError:
    """The error that lists the first ``most`` faults of samples."""
    listed = "".join(f"\n  - {fault}" for fault in faults[:most])
    more = f"\n  - and {len(faults) - most} more" if len(faults) > most else ""
    return DataError(f"{what} are unusable:{listed}{more}", fix=fix)


def read_annotations(src: Path) -> list[Any]:
    """The entries of ``filter_cap.json``, as they stand there. Raises DataError if it has none."""
    path = src / CAPTION_FILE
    try:
        content = parse_json(read_utf8(path))
        annotations = content["annotations"]
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}",
            fix=f"give the folder that holds {CAPTION_FILE} and {IMAGE_FOLDER}/",
        ) from None
    except NotUtf8 as error:
        raise DataError(f"{path} is {error} (byte {error.byte})", fix="save it as UTF-8") from None
    except (ValueError, KeyError, TypeError):
        raise DataError(f'{path} is not JSON of the form {{"annotations": [...]}}') from None
    if not isinstance(annotations, list) or not annotations:
        raise DataError(f"{path} has no annotations")
    return annotations


def list_align_images(src: Path) -> ImageFolder:
    """The images of a folder in cc_sbu_align's layout. Raises DataError if there is no folder."""
    try:
        return ImageFolder(src / IMAGE_FOLDER)
    except OSError as error:
        raise DataError(
            f"{src / IMAGE_FOLDER} cannot be read: {error.strerror}",
            fix=f"a folder with {CAPTION_FILE} needs {IMAGE_FOLDER}/ID.jpg beside it",
        ) from error


def left_out_of_align(src: Path) -> list[LeftOut]:
    """Files beside the images that no pair names. Raises DataError as ``pack_align_folder``."""
    images = list_align_images(src)
    entries = [entry for entry in read_annotations(src) if isinstance(entry, dict)]
    used = {path for entry in entries for path in images.find(str(entry.get("image_id")))}
    return add_up(
        LeftOut(f"no pair of {CAPTION_FILE} names it", suffix_of(path.name), 1, path.name)
        for path in sorted(images.folder.iterdir())
        if path not in used
    )


def _checked(images: ImageFolder, annotations: list[Any]) -> tuple[list[_Sample], list[str]]:
    """The sample of each pair, and what is wrong with the others."""
    samples: list[_Sample] = []
    faults = []
    seen: set[str] = set()
    for number, entry in enumerate(annotations):
        if not isinstance(entry, dict) or not {"image_id", "caption"} <= entry.keys():
            faults.append(f"annotation {number} has no image_id and caption")
            continue
        image_id, caption = str(entry["image_id"]), entry["caption"]
        paths = images.find(image_id)
        fault = _entry_fault(image_id, caption, seen) or _image_fault(images, image_id, paths)
        if fault:
            faults.append(f"{image_id}: {fault}")
        else:
            caption = caption.removeprefix(BYTE_ORDER_MARK)
            record = json.dumps({"image_id": image_id, "caption": caption}, ensure_ascii=False)
            texts = {"json": record.encode(), "txt": caption.encode()}
            samples.append((image_id, paths[0], texts))
        seen.add(image_id)
    return samples, faults


def _entry_fault(image_id: str, caption: object, seen: set[str]) -> str:
    if fault := _id_fault(image_id, seen):
        return fault
    if not isinstance(caption, str) or not is_visible(caption):
        return "the caption is empty"
    return ""


def _id_fault(image_id: str, seen: set[str]) -> str:
    if not image_id or not image_id.isprintable() or set(image_id) & set("/\\."):
        dotted = (
            " (a dot ends a key in a shard: leave its extension out)" if "." in image_id else ""
        )
        return f"the id is no plain file name{dotted}"
    if image_id in seen:
        return "the id occurs twice"
    return ""


def _image_fault(images: ImageFolder, image_id: str, paths: Sequence[Path]) -> str:
    # NumPy and the decoders come along; `submit` asks this module for a name only.
    from mgpt4_hpc.data.images.decode import ImageError, decode_rgb

    if not paths:
        image = images.folder / f"{image_id}.jpg"
        return f"{image}: {os.strerror(errno.ENOENT)}{beside(image)}"
    if len(paths) > 1:
        return f"several images have its name: {', '.join(path.name for path in paths)}"
    try:
        decode_rgb(paths[0].read_bytes())
    except OSError as error:
        if is_transient(error):
            raise DataError(
                f"{paths[0]} cannot be read just now: {error.strerror}",
                fix="try again when the storage answers",
            ) from error
        return f"{paths[0]}: {error.strerror}"
    except ImageError as error:
        return str(error)
    return ""


def _write(out: Path, samples: list[_Sample], per_shard: int) -> None:
    """Write the shards; their folder appears when it is complete."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with scratch_beside(out) as holder:
        folder = holder / "shards"
        folder.mkdir()
        with ShardWriter(folder, per_shard) as shards:
            for key, image, texts in samples:
                shards.add(key, {suffix_of(image.name): image.read_bytes(), **texts})
        folder.rename(out)


class ShardWriter:
    """Tar shards of equal length, written into a folder one after the other."""

    def __init__(self, folder: Path, per_shard: int) -> None:
        self.num_samples = 0
        self._folder = folder
        self._per_shard = per_shard
        self._file: IO[bytes] | None = None
        self._writer: Any = None

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Write a sample's members, by their extensions."""
        # It brings torch along, which the login node's commands do without.
        import webdataset

        if self.num_samples % self._per_shard == 0:
            self._finish()
            name = f"{self.num_samples // self._per_shard:05d}.tar"
            self._file = (self._folder / name).open("wb")
            # A fixed time, owner and format: the same input gives the same bytes.
            self._writer = webdataset.TarWriter(self._file, encoder=False, mtime=0, compress=False)
        self._writer.write({"__key__": key, **members})
        self.num_samples += 1

    def _finish(self) -> None:
        if self._file is not None:
            self._writer.close()
            self._file.close()
            self._file = None

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._finish()

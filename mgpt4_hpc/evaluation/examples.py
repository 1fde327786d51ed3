"""Images to be answered about, with what people wrote about them, from folders, shards and COCO."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from mgpt4_hpc.data.images.image_file import list_pictures, read_picture
from mgpt4_hpc.data.index.index import ShardIndex, build_index
from mgpt4_hpc.data.index.index_file import is_index
from mgpt4_hpc.data.index.shard_list import expand_shards
from mgpt4_hpc.data.reading.reader import BadSampleError, SampleReader
from mgpt4_hpc.data.sources.pack import (
    IMAGE_FOLDER,
    is_align_folder,
    list_align_images,
    read_annotations,
)
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.formatting import beside
from mgpt4_hpc.resources import expand_toy
from mgpt4_hpc.text_files import NotUtf8, parse_json, read_utf8

SCENES_FILE = "scenes.json"
T = TypeVar("T")


def toy_scenes(weights: Path) -> Path | None:
    """Folder of the held-out scenes that lie beside a toy world's weights; None for others."""
    folder = weights.parent / "heldout"
    return folder if (folder / SCENES_FILE).is_file() else None


class _Misfit(ValueError):
    """A file that is JSON, but not laid out as captions are; the message says how."""


@dataclass(frozen=True)
class Example:
    """One image.

    Attributes:
        name: unlike any other's; answers of two models are compared by it.
        where: its file, its bytes where they came out of a shard, or why those cannot be used.
        references: what people wrote about it; may be empty.
    """

    name: str
    where: Path | bytes | DataError
    references: tuple[str, ...] = ()

    def data(self) -> bytes:
        """The compressed image. Raises DataError if it cannot be read."""
        if isinstance(self.where, DataError):
            raise self.where
        return self.where if isinstance(self.where, bytes) else read_picture(self.where)

    @cached_property
    def digest(self) -> str:
        """BLAKE2b of the compressed image, as it was first read. Raises DataError as ``data``."""
        return hashlib.blake2b(self.data(), digest_size=8).hexdigest()


def load_examples(
    images: str | Path, references: Path | None = None, limit: int | None = None
) -> list[Example]:
    """Images of a folder, of shards, of a ``cc_sbu_align`` folder, or of toy held-out scenes.

    Args:
        images: what ``data.shards.expand_shards`` knows, an index of shards, or a folder.
        references: COCO's caption JSON (``images`` and ``annotations``), or an object that maps
            file names to a caption or a list of them; adds to what the images bring along.
        limit: number to take, evenly spread over all.

    Raises:
        DataError: if there are no images, or the references fit none of them.
    """
    images = expand_toy(str(images))
    folder = Path(images)
    if (folder / SCENES_FILE).is_file():
        found = _of_scenes(folder)
    elif folder.is_dir() and is_align_folder(folder):
        found = _of_align(folder)
    elif folder.is_dir() and not any(folder.glob("*.tar")):
        found = [Example(path.name, path) for path in list_pictures(folder)]
    else:
        return _with_references(_of_shards(images, limit), references)
    return _with_references(spread(found, limit), references)


def spread(items: Sequence[T], limit: int | None) -> list[T]:
    """At most ``limit`` of the items, evenly spaced, in their order."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[number * len(items) // limit] for number in range(limit)]


def read_references(path: Path) -> dict[str, tuple[str, ...]]:
    """File name of each image to its captions.

    Raises:
        DataError: if the file is neither COCO's layout nor a plain mapping.
    """
    try:
        raw = parse_json(read_utf8(path))
        if not isinstance(raw, dict):
            raise _Misfit("it is no object of names and captions")
        return _coco(raw) if "annotations" in raw else _mapping(raw)
    except OSError as error:
        near = beside(path) if isinstance(error, FileNotFoundError) else ""
        raise DataError(f"cannot read {path}: {error.strerror}{near}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path} holds no captions: {_fault(error)}",
            fix='give COCO\'s captions_*.json, or {"FILE NAME": ["caption", ...], ...}',
        ) from error


def _fault(error: Exception) -> str:
    if isinstance(error, NotUtf8):
        return f"it is {error}"
    if isinstance(error, json.JSONDecodeError):
        return f"it is no JSON (line {error.lineno}, column {error.colno})"
    if isinstance(error, KeyError):
        return f"an entry is missing, {error}"
    return str(error) if isinstance(error, _Misfit) else "its entries are of another kind"


def _coco(raw: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    names = {entry["id"]: entry["file_name"] for entry in raw["images"]}
    captions: dict[str, list[str]] = defaultdict(list)
    for entry in raw["annotations"]:
        captions[names[entry["image_id"]]].append(entry["caption"].strip())
    return {name: tuple(texts) for name, texts in captions.items()}


def _mapping(raw: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    return {
        name: (texts,) if isinstance(texts, str) else tuple(text.strip() for text in texts)
        for name, texts in raw.items()
    }


def _with_references(found: list[Example], path: Path | None) -> list[Example]:
    if path is None:
        return found
    captions = read_references(path)
    joined = [
        Example(example.name, example.where, example.references + captions.get(example.name, ()))
        for example in found
    ]
    if not any(example.name in captions for example in found):
        raise DataError(
            f"{path} says nothing about any of the {len(found)} images",
            why=f"it knows for instance {next(iter(captions), 'none')!r}, "
            f"the images are for instance {found[0].name!r}",
            fix="give the captions that belong to these images",
        )
    return joined


def _of_scenes(folder: Path) -> list[Example]:
    scenes = parse_json((folder / SCENES_FILE).read_text(encoding="utf-8"))
    return [
        Example(scene["image"], folder / IMAGE_FOLDER / scene["image"], (scene["reference"],))
        for scene in scenes
    ]


def _of_align(folder: Path) -> list[Example]:
    images = list_align_images(folder)
    examples = []
    for entry in read_annotations(folder):
        found = images.find(str(entry["image_id"]))
        path = found[0] if found else images.folder / f"{entry['image_id']}.jpg"
        several = f"several images have its name: {', '.join(one.name for one in found)}"
        where = DataError(several) if len(found) > 1 else path
        examples.append(Example(path.name, where, (entry["caption"],)))
    return examples


def _of_shards(images: str | Path, limit: int | None) -> list[Example]:
    found: list[Example] = []
    with tempfile.TemporaryDirectory(prefix="mgpt4-eval-") as folder:
        path = Path(images)
        if not is_index(path):
            path = Path(folder) / "images.index"
            build_index(expand_shards(images, also="a folder of images"), path, name="images")
        index = ShardIndex.open(path)
        reader = SampleReader([index])
        for sample_id in spread(range(index.num_samples), limit):
            try:
                sample = reader.read(0, sample_id)
            except BadSampleError as error:  # named with the others that cannot be used
                found.append(Example(error.key, DataError(str(error))))
                continue
            if sample.images:  # a conversation may have none
                found.append(Example(sample.key, sample.images[0], (sample.caption,)))
        reader.close()
    if not found:
        raise DataError(f"{images} holds no usable sample", fix="see: mgpt4 data check")
    return found

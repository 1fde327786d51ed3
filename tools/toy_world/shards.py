"""The product's data: two web sources as tar shards, the aligned folder, the held-out scenes.

Every byte follows from the seed (and from the JPEG encoder): tar headers carry no time, no user.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

from toy_world.captions import clean_caption, description, noisy_caption
from toy_world.raster import IMAGE_SIZE, draw, encode_jpeg
from toy_world.scenes import Scene, scene_key, stream
from toy_world.splits import heldout_scenes, training_scenes

Write = Callable[[Scene, Random], str]


@dataclass(frozen=True)
class Source:
    """One data source of stage 1."""

    name: str
    num_shards: int
    samples_per_shard: int
    write: Write


SOURCES = (
    Source("laion", num_shards=2, samples_per_shard=230, write=noisy_caption),
    Source("cc_sbu", num_shards=2, samples_per_shard=70, write=clean_caption),
)
NUM_ALIGNED = 150


@dataclass(frozen=True)
class Pair:
    """One scene as JPEG bytes and text."""

    scene: Scene
    jpeg: bytes
    text: str


def pairs(
    seed: int, name: str, scenes: tuple[Scene, ...] | list[Scene], write: Write
) -> list[Pair]:
    """Draw and describe `scenes`; `name` keeps the random streams of the products apart."""
    drawing, wording = stream(seed, f"{name}/drawings"), stream(seed, f"{name}/texts")
    return [
        Pair(scene, encode_jpeg(draw(scene, drawing)[0]), write(scene, wording)) for scene in scenes
    ]


def source_pairs(seed: int, source: Source) -> list[Pair]:
    """All samples of one stage 1 source, in shard order."""
    count = source.num_shards * source.samples_per_shard
    return pairs(seed, source.name, training_scenes(seed, source.name, count), source.write)


def aligned_pairs(seed: int) -> list[Pair]:
    """Stage 2's samples."""
    scenes = training_scenes(seed, "cc_sbu_align", NUM_ALIGNED)
    return pairs(seed, "cc_sbu_align", scenes, description)


def heldout_pairs(seed: int) -> list[Pair]:
    """The held-out scenes, each with a reference description."""
    return pairs(seed, "heldout", heldout_scenes(seed), description)


def _metadata(source: str, key: str, pair: Pair) -> dict[str, Any]:
    """What img2dataset writes beside an image, less its fields for EXIF and failed downloads."""
    return {
        "caption": pair.text,
        "url": f"https://toy-world.invalid/{source}/{key}.jpg",
        "key": key,
        "status": "success",
        "error_message": None,
        "width": IMAGE_SIZE,
        "height": IMAGE_SIZE,
        "original_width": IMAGE_SIZE,
        "original_height": IMAGE_SIZE,
        "sha256": hashlib.sha256(pair.jpeg).hexdigest(),
    }


def _members(source: str, key: str, pair: Pair) -> Iterator[tuple[str, bytes]]:
    metadata = json.dumps(_metadata(source, key, pair), separators=(",", ":"))
    yield f"{key}.jpg", pair.jpeg
    yield f"{key}.json", metadata.encode()
    yield f"{key}.txt", pair.text.encode()


def shard_bytes(source: str, shard: int, shard_pairs: list[Pair]) -> bytes:
    """One tar in img2dataset's layout: KEY.jpg, KEY.json, KEY.txt, side by side."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for index, pair in enumerate(shard_pairs):
            for name, payload in _members(source, f"{shard:05d}{index:04d}", pair):
                info = tarfile.TarInfo(name)
                info.size = len(payload)
                tar.addfile(info, io.BytesIO(payload))
    return buffer.getvalue()


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, indent=1) + "\n")


def heldout_record(index: int, pair: Pair) -> dict[str, Any]:
    """The truth about one held-out scene."""
    return {
        "image": f"{index:03d}.jpg",
        "key": scene_key(pair.scene),
        "main": asdict(pair.scene.main),
        **pair.scene.as_dict(),
        "reference": pair.text,
    }


def write_data(seed: int, out: Path) -> None:
    """Write `shards/`, `cc_sbu_align/` and `heldout/` under `out`."""
    for source in SOURCES:
        folder = out / "shards" / source.name
        folder.mkdir(parents=True, exist_ok=True)
        found, size = source_pairs(seed, source), source.samples_per_shard
        for shard in range(source.num_shards):
            payload = shard_bytes(source.name, shard, found[shard * size : (shard + 1) * size])
            (folder / f"{shard:05d}.tar").write_bytes(payload)

    folder = out / "cc_sbu_align"
    (folder / "image").mkdir(parents=True, exist_ok=True)
    annotations = []
    for number, pair in enumerate(aligned_pairs(seed), start=1):
        (folder / "image" / f"{number}.jpg").write_bytes(pair.jpeg)
        annotations.append({"image_id": str(number), "caption": pair.text})
    _write_json(folder / "filter_cap.json", {"annotations": annotations})

    folder = out / "heldout"
    (folder / "image").mkdir(parents=True, exist_ok=True)
    records = []
    for index, pair in enumerate(heldout_pairs(seed)):
        records.append(heldout_record(index, pair))
        (folder / "image" / records[-1]["image"]).write_bytes(pair.jpeg)
    _write_json(folder / "scenes.json", records)

"""Small shards, images and token specs made on the fly: no binary fixtures."""

from __future__ import annotations

import io
import itertools
import json
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from mgpt4_hpc.chat_format import TemplateFormat
from mgpt4_hpc.data.batching.text import TextSpec
from mgpt4_hpc.data.index.index import ShardIndex, build_index
from mgpt4_hpc.prompts import TEMPLATES


def jpeg(number: int = 0, size: tuple[int, int] = (16, 16), **options: object) -> bytes:
    """A JPEG whose pixels depend on ``number``."""
    pixels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC)
    return encoded(image, "JPEG", **{"quality": 95, **options})


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    data = io.BytesIO()
    image.save(data, form, **options)
    return data.getvalue()


def members(numbers: Iterable[int], image: bytes | None = None) -> list[tuple[str, bytes]]:
    """img2dataset's three members of each sample."""
    result = []
    for number in numbers:
        key, caption = f"{number:09d}", f"picture number {number}"
        result += [
            (f"{key}.jpg", image if image is not None else jpeg(number)),
            (f"{key}.json", json.dumps({"caption": caption, "key": key}).encode()),
            (f"{key}.txt", caption.encode()),
        ]
    return result


def tar_bytes(
    entries: Iterable[tuple[str, bytes]],
    form: int = tarfile.USTAR_FORMAT,
    mtime: float | Sequence[float] = 0,
) -> bytes:
    """A tar; several times are given to its members in turns."""
    data = io.BytesIO()
    mtimes = itertools.cycle(mtime if isinstance(mtime, Sequence) else [mtime])
    with tarfile.open(fileobj=data, mode="w", format=form) as tar:
        for (name, content), time in zip(entries, mtimes, strict=False):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), time
            tar.addfile(info, io.BytesIO(content))
    return data.getvalue()


def write_shards(folder: Path, num_samples: int, per_shard: int) -> list[Path]:
    """img2dataset-like shards with distinct samples."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number, begin in enumerate(range(0, num_samples, per_shard)):
        path = folder / f"{number:05d}.tar"
        path.write_bytes(tar_bytes(members(range(begin, min(begin + per_shard, num_samples)))))
        paths.append(path)
    return paths


def make_index(
    folder: Path, num_samples: int, per_shard: int = 50, name: str = "toy"
) -> ShardIndex:
    out = folder / f"{name}.index"
    build_index(write_shards(folder / name, num_samples, per_shard), out)
    return ShardIndex.open(out)


def encode(text: str) -> list[int]:
    """A stand-in tokenizer: one token a character, 3 and up."""
    return [3 + ord(character) % 500 for character in text]


def text_spec(**changes: object) -> TextSpec:
    settings: dict[str, object] = {
        "encode": encode,
        "bos_id": 1,
        "pad_id": 0,
        "num_image_tokens": 4,
        "max_answer_tokens": 32,
        "end_symbol": "\n",
        "chat_format": TemplateFormat(TEMPLATES["vicuna_v0"], encode, bos_id=1),
    }
    return TextSpec(**{**settings, **changes})  # type: ignore[arg-type]

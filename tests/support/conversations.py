"""Conversations of the tiny world: a file, its images, and the shards made of them."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
from PIL import Image

from mgpt4_hpc.data.sources.pack_conversations import pack_conversations
from tests.support.tiny_world import WORDS


def write_conversations(folder: Path, count: int = 40) -> Path:
    """Shards of conversations with one to three turns and none to three images."""
    rng = random.Random(7)
    images = folder / "images"
    images.mkdir(parents=True)
    records = []
    for number in range(count):
        names = [f"{number}-{place}.png" for place in range(rng.randint(0, 3))]
        for name in names:
            pixels = np.random.default_rng(number).integers(0, 256, (7, 7, 3), dtype=np.uint8)
            stream = io.BytesIO()
            Image.fromarray(pixels).resize((56, 56)).save(stream, "PNG")
            (images / name).write_bytes(stream.getvalue())
        turns = [
            [" ".join(rng.choices(WORDS, k=4)), " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))]
            for _ in range(rng.randint(1, 3))
        ]
        for _ in names:
            turn = rng.choice(turns)
            turn[0] = f"<image> {turn[0]}"
        shown = [image for turn in turns for image in ["<image>"] * turn[0].count("<image>")]
        assert len(shown) == len(names)
        said = [
            {"from": who, "value": text}
            for turn in turns
            for who, text in zip(("human", "gpt"), turn, strict=True)
        ]
        records.append({"image": names, "conversations": said})
    file = folder / "talk.json"
    file.write_text(json.dumps(records))
    pack_conversations(file, folder / "shards", images=images, samples_per_shard=16)
    return folder / "shards"

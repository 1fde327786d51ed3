"""A world small enough for a run of seconds: the reference's random model, random pictures."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

REFERENCE = Path(__file__).parents[1] / "reference" / "vicuna_tiny"
WORDS = [
    "a",
    "red",
    "blue",
    "green",
    "dog",
    "cat",
    "boat",
    "house",
    "tree",
    "on",
    "in",
    "the",
    "big",
]


@dataclass(frozen=True)
class TinyWorld:
    """Paths of weights and data."""

    root: Path

    @property
    def weights(self) -> Path:
        return self.root / "weights"

    def shards(self, source: str) -> Path:
        return self.root / "shards" / source

    @property
    def align(self) -> Path:
        return self.root / "cc_sbu_align"

    def config(self, stage: int = 1, **changes: Any) -> dict[str, Any]:
        """Nested settings of a short run; ``train__lr=1`` changes a leaf."""
        sources = (
            [
                {"name": "laion", "path": str(self.shards("laion")), "weight": 3},
                {"name": "cc_sbu", "path": str(self.shards("cc_sbu")), "weight": 1},
            ]
            if stage == 1
            else [{"name": "cc_sbu_align", "path": str(self.align)}]
        )
        config: dict[str, Any] = {
            "stage": stage,
            "name": f"tiny-stage{stage}",
            "model": {"weights": str(self.weights), "precision": "fp32"},
            "data": {"sources": sources, "num_workers": 1},
            "text": {"max_answer_tokens": 24},
            "train": {
                "global_batch_size": 4,
                "micro_batch_size": 2,
                "max_steps": 12,
                "lr": 0.01,
                "warmup_steps": 4,
                "log_every_steps": 1,
                "device": "cpu",
                "num_threads": 1,
            },
            "launch": {"cpus_per_gpu": 1},
        }
        for key, value in changes.items():
            section, _, leaf = key.partition("__")
            if leaf:
                config.setdefault(section, {})[leaf] = value
            else:
                config[section] = value
        return config

    def write_config(self, path: Path, stage: int = 1, **changes: Any) -> Path:
        """The same as a YAML file."""
        path.write_text(yaml.safe_dump(self.config(stage, **changes)))
        return path


def build_tiny_world(root: Path, samples: int = 96) -> TinyWorld:
    """Write weights, two shard folders and an align folder under ``root``."""
    world = TinyWorld(root)
    shutil.copytree(REFERENCE, world.weights, ignore=shutil.ignore_patterns("expected.*"))
    (world.weights / "pretrained_minigpt4.pth").unlink()
    expected = json.loads((REFERENCE / "expected.json").read_text())
    (world.weights / "architecture.json").write_text(json.dumps(expected["architecture"]))
    rng = np.random.default_rng(7)
    for source, count in (("laion", samples), ("cc_sbu", samples // 2)):
        _write_shards(world.shards(source), source, count, rng)
    _write_align(world.align, samples // 4, rng)
    return world


def toy_sized(world: TinyWorld, steps: int = 4) -> dict[str, str]:
    """An environment in which the shipped presets are runs of seconds, in this world."""
    settings = {
        "model.weights": world.weights,
        "model.precision": "fp32",
        "data.paths.laion": world.shards("laion"),
        "data.paths.cc_sbu": world.shards("cc_sbu"),
        "data.paths.cc_sbu_align": world.align,
        "data.num_workers": 1,
        "text.max_answer_tokens": 24,
        "train.global_batch_size": 16,
        "train.micro_batch_size": 4,
        "train.max_steps": steps,
        "train.warmup_steps": 2,
        "train.log_every_steps": 1,
        "train.device": "cpu",
        "train.num_threads": 1,
        "launch.cpus_per_gpu": 1,
    }
    return {
        f"MGPT4_{key.upper().replace('.', '__')}": str(value) for key, value in settings.items()
    }


def _jpeg(rng: np.random.Generator) -> bytes:
    pixels = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize((56, 56)).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def _caption(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words))


def _write_shards(folder: Path, source: str, count: int, rng: np.random.Generator) -> None:
    import webdataset

    folder.mkdir(parents=True)
    for shard in range(2):
        with webdataset.TarWriter(str(folder / f"{shard:05d}.tar")) as writer:
            for number in range(count // 2):
                caption = _caption(rng, int(rng.integers(2, 9)))
                writer.write(
                    {
                        "__key__": f"{source}{shard:05d}{number:04d}",
                        "jpg": _jpeg(rng),
                        "txt": caption.encode(),
                        "json": json.dumps({"caption": caption}).encode(),
                    }
                )


def _write_align(folder: Path, count: int, rng: np.random.Generator) -> None:
    (folder / "image").mkdir(parents=True)
    annotations = []
    for number in range(count):
        (folder / "image" / f"{number}.jpg").write_bytes(_jpeg(rng))
        annotations.append({"image_id": str(number), "caption": _caption(rng, 12) + "."})
    (folder / "filter_cap.json").write_text(json.dumps({"annotations": annotations}))

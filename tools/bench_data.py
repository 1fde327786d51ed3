"""Our loader against a plain webdataset + Pillow pipeline, on the same shards in the same run.

    python tools/bench_data.py --json

Makes shards like img2dataset's (224 px JPEGs, quality 95, json and txt). Both pipelines give
batches of uint8 pixels with the cleaned caption as tokens, through one DataLoader each with the
same number of workers; webdataset shuffles 1,000 samples and decodes with Pillow, as the original
did. They take turns, --rounds each, and the best of each counts.

`ours_samples_per_s`, `webdataset_samples_per_s`, `ratio`, by number of workers: samples per second
of processor time (user + system, workers included), which is what one core gives however busy the
machine is; `wall_*`: by the clock. `ours_resume_s`, `webdataset_resume_s`: from nothing to the
first batch behind `resume_at` samples, half an epoch; webdataset reads through what was consumed,
without decoding it (and, its shuffle being seeded anew, arrives at other samples).

`conversations` and `original_size` hold the same rates, without workers, of conversations of three
turns about one image of 224 px, and of captions with images of 640 x 480.
"""

from __future__ import annotations

import argparse
import gc
import io
import itertools
import json
import os
import resource
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
import webdataset as wds
from PIL import Image

from mgpt4_hpc.chat_format import TemplateFormat
from mgpt4_hpc.data.batching.batch import Batch, collate
from mgpt4_hpc.data.batching.loader import LoaderOptions, StepLoader
from mgpt4_hpc.data.batching.text import TextSpec, build_sequence
from mgpt4_hpc.data.index.conversations import parse_conversation
from mgpt4_hpc.data.index.index import ShardIndex, build_index
from mgpt4_hpc.data.sampling.order import SampleOrder, SourceSize
from mgpt4_hpc.model.llm_files.tokenizer import load_tokenizer
from mgpt4_hpc.prompts import TEMPLATES, Dialogue

LLM = Path(__file__).resolve().parent.parent / "mgpt4_hpc" / "toy_world" / "weights" / "llm"
SIZE = 224
BATCH = 32
WORDS = ["a", "the", "dog", "cat", "house", "tree", "photo", "of", "two", "red", "small", "street"]
KINDS = 64
"""Different pictures, repeated."""
TURNS = 3


def make_shards(
    folder: Path,
    num_shards: int,
    per_shard: int,
    size: tuple[int, int] = (SIZE, SIZE),
    talking: bool = False,
) -> list[Path]:
    random = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    images = []
    for _ in range(KINDS):
        coarse = Image.fromarray(random.integers(0, 256, (28, 28, 3), dtype=np.uint8))
        data = io.BytesIO()
        coarse.resize(size, Image.Resampling.BICUBIC).save(data, "JPEG", quality=95)
        images.append(data.getvalue())
    paths = []
    for shard in range(num_shards):
        paths.append(folder / f"{shard:05d}.tar")
        with tarfile.open(paths[-1], "w") as tar:
            for number in range(per_shard):
                key = f"{shard:05d}{number:04d}"
                caption = " ".join(random.choice(WORDS, 10))
                record = {"url": f"https://example.org/{key}.jpg", "caption": caption, "key": key}
                record |= {"status": "success", "width": SIZE, "height": SIZE, "sha256": "0" * 64}
                parts = [("jpg", images[int(random.integers(KINDS))])]
                if talking:
                    parts.append(("json", json.dumps(conversation(random)).encode()))
                else:
                    parts += [("json", json.dumps(record).encode()), ("txt", caption.encode())]
                for ending, content in parts:
                    info = tarfile.TarInfo(f"{key}.{ending}")
                    info.size, info.mtime = len(content), 1700000000.25
                    tar.addfile(info, io.BytesIO(content))
    return paths


def conversation(random: np.random.Generator) -> dict[str, Any]:
    """Three questions and answers about one image, as LLaVA writes them."""
    said = []
    for turn in range(TURNS):
        asked = " ".join(random.choice(WORDS, 8))
        said.append({"from": "human", "value": asked if turn else f"<image>\n{asked}"})
        said.append({"from": "gpt", "value": " ".join(random.choice(WORDS, 25))})
    return {"conversations": said}


def ours(index: ShardIndex, spec: TextSpec, workers: int, start: int) -> StepLoader:
    return StepLoader(
        SampleOrder([SourceSize(index.name, index.num_samples, 1)], seed=0),
        [index],
        spec,
        SIZE,
        LoaderOptions(
            global_batch_size=BATCH,
            micro_batch_size=BATCH,
            num_workers=workers,
            start_position=start,
            pin_memory=False,
        ),
    )


class Plain:
    """Samples as the original's pipeline makes them, but for what both leave to the GPU."""

    def __init__(self, spec: TextSpec) -> None:
        self.spec = spec

    def __call__(self, sample: dict[str, Any]) -> tuple[str, np.ndarray, Any]:
        image = sample["jpg"].resize((SIZE, SIZE), Image.Resampling.BICUBIC)  # a copy: same size
        pixels = np.asarray(image).transpose(2, 0, 1)
        record = sample["json"]
        if "caption" in record:
            text: str | Dialogue = record["caption"]
        else:
            text = parse_conversation(record).dialogue
        return sample["__key__"], pixels, build_sequence(self.spec, text)

    def batch(self, samples: list[tuple[str, np.ndarray, Any]]) -> Batch:
        keys, pixels, sequences = zip(*samples, strict=True)
        return collate(
            np.stack(pixels), sequences, self.spec.pad_id, keys=keys, positions=range(len(keys))
        )


def webdataset(paths: list[Path], spec: TextSpec, workers: int, skip: int) -> Any:
    plain = Plain(spec)
    stages: list[Any] = [
        wds.SimpleShardList([str(path) for path in paths] * 1000),  # further epochs
        wds.split_by_worker,
        wds.tarfile_to_samples(),
    ]
    if skip:
        stages.append(lambda samples: itertools.islice(samples, skip // max(1, workers), None))
    stages += [wds.shuffle(1000, initial=100), wds.decode("pilrgb", only=["jpg", "json"])]
    stages += [wds.map(plain), wds.batched(BATCH, collation_fn=plain.batch)]
    return torch.utils.data.DataLoader(
        wds.DataPipeline(*stages), batch_size=None, num_workers=workers, collate_fn=_as_it_is,
        multiprocessing_context="fork" if workers else None,
    )  # fmt: skip


def _as_it_is(batch: Batch) -> Batch:
    return batch


def take_ours(loader: StepLoader, batches: int) -> None:
    with loader:
        for _ in range(batches):
            next(loader)


def take_webdataset(loader: Any, batches: int) -> None:
    stream: Iterator[Batch] = iter(loader)
    for _ in range(batches):
        next(stream)
    del stream
    gc.collect()  # ends and reaps the workers


def cost(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds of processor time, workers included, and by the clock."""
    gc.collect()
    before, began = _processor_s(), time.perf_counter()
    work()
    return _processor_s() - before, time.perf_counter() - began


def _processor_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def token_spec() -> TextSpec:
    tokenizer = load_tokenizer(LLM)
    return TextSpec(
        encode=tokenizer.encode, bos_id=tokenizer.bos_id, pad_id=tokenizer.pad_id,
        num_image_tokens=32, max_answer_tokens=32, end_symbol="\n", clean=True,
        chat_format=TemplateFormat(TEMPLATES["vicuna_v0"], tokenizer.encode, tokenizer.bos_id),
    )  # fmt: skip


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    paths = make_shards(folder, options.shards, options.per_shard)
    spec = token_spec()
    out = folder / "bench.index"
    build_index(paths, out)
    result: dict[str, Any] = {
        "samples": options.shards * options.per_shard,
        "bytes_per_sample": sum(path.stat().st_size for path in paths)
        // (options.shards * options.per_shard),
        "batches": options.batches,
        "batch_size": BATCH,
    }
    best: dict[tuple[str, int], tuple[float, float]] = {}
    for _ in range(options.rounds):
        for workers in (0, 1, 2):
            for name, work in (
                (
                    "ours",
                    lambda w=workers: take_ours(
                        ours(ShardIndex.open(out), spec, w, 0), options.batches
                    ),
                ),
                (
                    "webdataset",
                    lambda w=workers: take_webdataset(
                        webdataset(paths, spec, w, 0), options.batches
                    ),
                ),
            ):
                processor, wall = cost(work)
                older = best.get((name, workers), (float("inf"), float("inf")))
                best[name, workers] = min(older[0], processor), min(older[1], wall)
    count = options.batches * BATCH
    for column, label in ((0, ""), (1, "wall_")):
        for name in ("ours", "webdataset"):
            result[f"{label}{name}_samples_per_s"] = {
                str(workers): round(count / best[name, workers][column]) for workers in (0, 1, 2)
            }
        result[f"{label}ratio"] = {
            str(workers): round(
                best["webdataset", workers][column] / best["ours", workers][column], 3
            )
            for workers in (0, 1, 2)
        }
    skip = result["samples"] // 2 // BATCH * BATCH
    result["resume_at"] = skip
    for name, work in (
        ("ours", lambda: take_ours(ours(ShardIndex.open(out), spec, 0, skip), 1)),
        ("webdataset", lambda: take_webdataset(webdataset(paths, spec, 0, skip), 1)),
    ):
        result[f"{name}_resume_s"] = round(min(cost(work)[1] for _ in range(options.rounds)), 4)
    talk = replace(spec, clean=False, max_answer_tokens=160)
    square, usual = (SIZE, SIZE), (640, 480)
    for name, size, text in (("conversations", square, talk), ("original_size", usual, spec)):
        paths = make_shards(folder / name, 1, options.per_shard, size, talking=text is talk)
        result[name] = race(paths, folder / f"{name}.index", text, options)
    return result


def race(
    paths: list[Path], out: Path, spec: TextSpec, options: argparse.Namespace
) -> dict[str, Any]:
    """Rates without workers, per second of processor time; the best of the rounds, in turns."""
    build_index(paths, out)
    best = {"ours": float("inf"), "webdataset": float("inf")}
    for _ in range(options.rounds):
        for name, work in (
            ("ours", lambda: take_ours(ours(ShardIndex.open(out), spec, 0, 0), options.batches)),
            ("webdataset", lambda: take_webdataset(webdataset(paths, spec, 0, 0), options.batches)),
        ):
            best[name] = min(best[name], cost(work)[0])
    count = options.batches * BATCH
    rates = {f"{name}_samples_per_s": round(count / seconds) for name, seconds in best.items()}
    return {**rates, "ratio": round(best["webdataset"] / best["ours"], 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--per-shard", type=int, default=5000)
    parser.add_argument("--batches", type=int, default=60, help="of 32 samples, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), options)
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:28} {value}")


if __name__ == "__main__":
    main()

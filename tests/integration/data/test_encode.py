"""Training from encoded images: the same bits, no image read, and every mismatch told."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import mgpt4_hpc.data.batching.batch_builder as collate_module
from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.data.encoding.plan import missing_from
from mgpt4_hpc.data.reading.feature_cache import FeatureCache
from mgpt4_hpc.data.reading.reader import SampleReader
from mgpt4_hpc.data.sampling.sample_source import ValDraws
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import DataError, RunLocked, StorageTrouble
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.train.inputs.feature_encoding import Encoding
from mgpt4_hpc.train.run import run_training
from mgpt4_hpc.train.stopping.stop import NeverStop, StopRequest, StopSource
from tests.support.runs import (
    REPO,
    curve,
    final_projector,
    last_step,
    patience,
    records,
    wait_until,
)
from tests.support.tiny_world import TinyWorld

SETTINGS = {
    "data__val_fraction": 0.1,
    "data__num_workers": 0,
    "data__max_bad_fraction": 0.5,
    "train__eval_every_steps": 6,
    "train__eval_samples": 6,
}


@pytest.fixture(scope="module")
def world(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """The tiny world with some pictures that cannot be decoded: others stand in for them."""
    root = tmp_path_factory.mktemp("encode") / "world"
    shutil.copytree(tiny_world.root, root)
    shard = root / "shards" / "laion" / "00000.tar"
    data = bytearray(shard.read_bytes())
    starts = [at for at in range(0, len(data), 512) if data[at : at + 3] == b"\xff\xd8\xff"]
    for at in starts[3::4]:
        data[at : at + 16] = b"no picture at all"[:16]
    shard.write_bytes(bytes(data))
    return TinyWorld(root)


def make_run(world: TinyWorld, path: Path, **settings: object) -> Path:
    file = world.write_config(path.with_suffix(".yaml"), **{**SETTINGS, **settings})
    run = RunDir(path)
    run.create({"name": path.name, "stage": 1})
    write_config(run.config_file, load_config(file))
    return path


def encode(world: TinyWorld, out: Path, dtype: str = "fp32", **settings: object) -> Encoding:
    file = world.write_config(out.with_suffix(".encode.yaml"), **{**SETTINGS, **settings})
    encoding = Encoding(load_config(file).config, out, dtype=dtype, samples_per_shard=10)
    encoding.run()
    return encoding


def train(run: Path, stop: StopSource | None = None) -> None:
    run_training(RunDir(run), Ranks(), stop or NeverStop(), claim={"job_id": "1"})


def substituted(run: Path) -> list[tuple[int, str, str]]:
    return [
        (entry["position"], entry["key"], entry["replaced_by"])
        for entry in records(run)
        if "replaced_by" in entry
    ]


def test_a_run_from_a_cache_is_the_same_to_the_bit_and_sees_no_image(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = make_run(world, tmp_path / "seen")
    train(seen)
    encoding = encode(world, tmp_path / "cache")
    assert encoding.cache.bad and missing_from(encoding.plan, encoding.cache) == 0

    def unwanted(*args: object, **kwargs: object) -> None:
        raise AssertionError("an image was decoded or encoded")

    monkeypatch.setattr(collate_module, "decode_image", unwanted)
    monkeypatch.setattr(MiniGPT4, "encode_images", unwanted)
    stored = make_run(world, tmp_path / "stored", data__feature_cache=str(tmp_path / "cache"))
    train(stored)
    assert curve(stored) == curve(seen)
    assert curve(stored, "val/loss") == curve(seen, "val/loss")
    assert len(curve(seen, "val/loss")) == 2
    assert final_projector(stored) == final_projector(seen)
    assert substituted(stored) == substituted(seen) != []


def test_rounded_to_bf16_it_is_nearly_the_same(world: TinyWorld, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    start = {"stage": 2}
    seen = make_run(world, tmp_path / "seen", **start)
    stored = make_run(world, tmp_path / "stored", data__feature_cache=str(cache), **start)
    encoding = encode(world, cache, "bf16", **start)
    assert encoding.bytes_per_sample == encoding.shape[0] * encoding.shape[1] * 2
    train(stored)
    train(seen)
    for (_, ours), (_, exact) in zip(curve(stored), curve(seen), strict=True):
        assert ours == pytest.approx(exact, rel=5e-3)


class StopAfter(NeverStop):
    """Asks to stop once a run's ledger tells of a step."""

    def __init__(self, run: Path, step: int) -> None:
        self._run = run
        self._step = step

    def poll(self) -> StopRequest | None:
        reached = last_step(self._run) >= self._step
        return StopRequest("test", time.time()) if reached else None


def test_interrupted_and_resumed_from_a_cache_elsewhere(world: TinyWorld, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    encode(world, cache, "bf16")
    alone, broken = (
        make_run(world, tmp_path / name, data__feature_cache=str(cache), data__num_workers=1)
        for name in ("alone", "broken")
    )
    train(alone)
    train(broken, StopAfter(broken, 4))
    assert 0 < last_step(broken) < 12
    cache.rename(tmp_path / "moved")
    file = RunDir(broken).config_file
    file.write_text(file.read_text().replace(str(cache), str(tmp_path / "moved")))
    train(broken)
    assert final_projector(broken) == final_projector(alone)
    assert curve(broken) == curve(alone)
    skipped = curve(alone, "data/skipped")
    assert curve(broken, "data/skipped") == skipped and skipped[3][1] < skipped[-1][1]
    assert skipped[-1][1] == len(substituted(alone)) == len(substituted(broken))


def test_more_steps_are_refused_until_they_are_encoded_too(
    world: TinyWorld, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    short = encode(world, cache, train__max_steps=4)
    assert short.num_missing == len(short.plan)
    longer = {"train__max_steps": 12}
    run = make_run(world, tmp_path / "run", data__feature_cache=str(cache), **longer)
    with pytest.raises(DataError, match=r"lacks \d+ of the \d+ samples that 12 steps need"):
        train(run)
    extended = encode(world, cache, **longer)
    assert extended.num_missing < len(extended.plan), "what is there is not encoded again"
    train(run)
    assert last_step(run) == 12


def test_a_bad_sample_gets_the_substitutes_that_another_run_needs(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is known to be bad, but in another run other samples stand in for it."""
    cache = tmp_path / "cache"

    def neighbour(draws: ValDraws, source_id: int, position: int, attempt: int) -> int:
        return int(draws.at([(position + attempt) % len(draws)])[0][1])

    settings = {"train__eval_samples": 40, "data__val_fraction": 0.4}
    with monkeypatch.context() as patch:
        patch.setattr(ValDraws, "substitute", neighbour)
        first = encode(world, cache, **settings)
        assert first.cache.bad and missing_from(first.plan, first.cache) == 0
    run = make_run(world, tmp_path / "run", data__feature_cache=str(cache), **settings)
    with pytest.raises(DataError, match="lacks"):
        train(run)
    again = encode(world, cache, **settings)
    assert 0 < again.num_missing <= len(first.cache.bad), "the others are not encoded again"
    assert missing_from(again.plan, again.cache) == 0
    with monkeypatch.context() as patch:
        patch.setattr(ValDraws, "substitute", neighbour)
        assert missing_from(again.plan, again.cache) == 0, "the first run's are still there"
    train(run)


def unreadable(monkeypatch: pytest.MonkeyPatch, shard: Path, code: int) -> None:
    opened = os.open

    def failing(path: object, *arguments: int, **options: int) -> int:
        if str(path) == str(shard):
            raise OSError(code, os.strerror(code))
        return opened(path, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", failing)
    monkeypatch.setitem(SampleReader.__init__.__kwdefaults__, "pauses_s", ())  # type: ignore[arg-type]


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOENT])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_storage_that_stumbles_spoils_no_cache(
    world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, num_workers: int
) -> None:
    """A sample that is once known to be bad is never read again."""
    settings = {"data__num_workers": num_workers}
    encode(world, tmp_path / "whole", **settings)
    whole = FeatureCache(tmp_path / "whole")
    out = tmp_path / "cache"
    file = world.write_config(out.with_suffix(".yaml"), **{**SETTINGS, **settings})
    encoding = Encoding(load_config(file).config, out, dtype="fp32", samples_per_shard=10)
    with monkeypatch.context() as patch:
        unreadable(patch, world.shards("cc_sbu") / "00000.tar", code)
        with pytest.raises((StorageTrouble, DataError), match="cannot be read"):
            encoding.run()
    assert set(encoding.cache.bad) <= set(whole.bad)
    cache = encode(world, out, **settings).cache
    assert (cache.num_samples, set(cache.bad)) == (whole.num_samples, set(whole.bad))


def test_too_many_bad_samples_are_told_before_they_are_known_for_ever(
    world: TinyWorld, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=r"more than data\.max_bad_fraction"):
        encode(world, tmp_path / "cache", data__max_bad_fraction=0.0)
    assert not FeatureCache(tmp_path / "cache").bad
    encode(world, tmp_path / "cache")  # the limit raised, a shard's bad samples are known
    encode(world, tmp_path / "cache", data__max_bad_fraction=0.0)


def test_features_of_something_else_are_refused_with_the_difference(
    world: TinyWorld, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    encode(world, cache)
    for name, settings, told in (
        ("resize", {"data__resize": "border"}, "resize was squash, is border"),
        (
            "precision",
            {"model__vision_precision": "bf16"},
            "vision_precision was fp32, is bf16",
        ),
        (
            "source",
            {"data__sources": [{"name": "laion", "path": str(world.shards("cc_sbu"))}]},
            "the index of laion was",
        ),
    ):
        run = make_run(world, tmp_path / name, data__feature_cache=str(cache), **settings)
        with pytest.raises(DataError, match=told):
            train(run)
        with pytest.raises(DataError, match=told):
            encode(world, cache, **settings)
    with pytest.raises(DataError, match="features are fp32, asked for is bf16"):
        encode(world, cache, "bf16")
    bundle = shutil.copytree(world.weights, tmp_path / "weights")
    other = json.loads((bundle / "llm" / "config.json").read_text())
    (bundle / "llm" / "config.json").write_text(json.dumps({**other, "touched": 1}))
    with pytest.raises(DataError, match="bundle was"):
        encode(world, cache, model__weights=str(bundle))


def test_a_run_is_held_to_its_cache(world: TinyWorld, tmp_path: Path) -> None:
    encode(world, tmp_path / "exact")
    encode(world, tmp_path / "rounded", "bf16")
    run = make_run(world, tmp_path / "run", data__feature_cache=str(tmp_path / "exact"))
    train(run)
    text = RunDir(run).config_file.read_text()
    RunDir(run).config_file.write_text(text.replace("/exact", "/rounded"))
    with pytest.raises(RunLocked, match="features was fp32"):
        train(run)


def test_killed_at_random_points_it_goes_on_and_leaves_whole_shards(
    world: TinyWorld, tmp_path: Path
) -> None:
    config = world.write_config(tmp_path / "run.yaml", **SETTINGS, train__max_steps=40)
    out = tmp_path / "cache"
    command = [
        sys.executable, "-m", "mgpt4_hpc.cli.main", "data", "encode", str(config),
        "--out", str(out), "--dtype", "fp32", "--samples-per-shard", "2", "--json",
    ]  # fmt: skip
    rng = random.Random(5)
    counts = []
    for number in (signal.SIGKILL, signal.SIGTERM):
        process = subprocess.Popen(command, cwd=REPO, stdout=subprocess.DEVNULL)
        wanted = len(list(out.glob("*.safetensors"))) + rng.randint(1, 6)
        wait_until(
            lambda wanted=wanted, process=process: (
                process.poll() is not None or len(list(out.glob("*.safetensors"))) >= wanted
            ),
            60,
            f"{wanted} shards",
        )
        process.send_signal(number)
        process.wait(timeout=60 * patience())
        counts.append(FeatureCache(out).num_samples)  # opens every shard, whole or not at all
    assert counts == sorted(counts) and counts[0] > 0
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, check=True)
    told = json.loads(done.stdout)
    assert told["num_missing"] == 0 and counts[-1] < told["num_encoded"]
    whole = encode(world, tmp_path / "whole", train__max_steps=40)
    assert told["num_encoded"] == whole.cache.num_samples
    assert not list(out.glob(".*"))

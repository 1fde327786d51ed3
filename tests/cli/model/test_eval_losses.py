"""``mgpt4 eval``: samples that the loss suite leaves out, and which images share a curve."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import Mgpt4
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run

NUM_SAMPLES = 6


@pytest.fixture
def run(world: TinyWorld, tmp_path: Path) -> RunDir:
    return make_trained_run(world, tmp_path / "two", data__val_fraction=0.5)


def write_shard(path: Path, world: TinyWorld, *broken: int) -> Path:
    """A shard of NUM_SAMPLES samples, those of some numbers with a torn JPEG."""
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as tar:
        for number in range(NUM_SAMPLES):
            jpg = (world.align / "image" / f"{number % 2}.jpg").read_bytes()
            parts = {"jpg": jpg[:200] if number in broken else jpg, "txt": b"a red dog"}
            for suffix, data in parts.items():
                member = tarfile.TarInfo(f"k{number}.{suffix}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path.parent


@pytest.mark.slow
def test_a_broken_sample_is_left_out_and_not_replaced(
    mgpt4: Mgpt4, run: RunDir, world: TinyWorld, tmp_path: Path
) -> None:
    folder = write_shard(tmp_path / "shards" / "0.tar", world, 2, 5)
    words = ("eval", run.path, "--suite", "loss", "--images", folder, "--batch-size", 4)
    ended = mgpt4(*words, "--json")
    assert ended.code == 0, ended.err
    given = ended.json["sources"]["given"]
    assert given["num_samples"] == NUM_SAMPLES - 2
    assert [reason.split()[0] for reason in given["left_out"]] == ["k2", "k5"]
    assert ended.err.count("left out: ") == 2

    # The others' loss is what a shard without the broken ones gives.
    whole = mgpt4(
        "eval", run.path, "--suite", "loss", "--json", "--batch-size", 1,
        "--images", write_shard(tmp_path / "one" / "0.tar", world),
    ).json["sources"]["given"]  # fmt: skip
    assert whole["num_tokens"] * 4 == given["num_tokens"] * 6 and whole["left_out"] == []

    shutil.rmtree(folder)
    write_shard(tmp_path / "shards" / "0.tar", world, *range(NUM_SAMPLES))
    refused = mgpt4(*words)
    assert refused.code == 1 and f"none of the {NUM_SAMPLES} samples" in refused.err


@pytest.mark.slow
def test_a_sample_without_a_caption_is_named_too(
    mgpt4: Mgpt4, run: RunDir, world: TinyWorld, tmp_path: Path
) -> None:
    folder = write_shard(tmp_path / "shards" / "0.tar", world)
    with tarfile.open(folder / "0.tar", "a") as tar:
        for suffix, data in (
            ("jpg", (world.align / "image" / "0.jpg").read_bytes()),
            ("json", b"{"),
        ):
            member = tarfile.TarInfo(f"k9.{suffix}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    ended = mgpt4("eval", run.path, "--images", folder, "--max-new-tokens", 4, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["tasks"][0]["num_images"] == NUM_SAMPLES
    (reason,) = ended.json["left_out"]
    assert reason.startswith("k9 in ")


@pytest.mark.slow
def test_other_images_have_curves_of_their_own(
    mgpt4: Mgpt4, run: RunDir, world: TinyWorld, tmp_path: Path
) -> None:
    one = write_shard(tmp_path / "a" / "set" / "0.tar", world)
    two = write_shard(tmp_path / "b" / "set" / "0.tar", world)
    told = [
        mgpt4("eval", run.path, "--suite", "loss", *words).err
        for words in ((), ("--images", one), ("--images", two), ("--images", one, "--limit", 2))
    ]
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.tensorboard / "eval"))
    events.Reload()
    drawn = events.Tags()["scalars"]
    assert len(drawn) == 4 and all(len(events.Scalars(tag)) == 1 for tag in drawn)
    own = [tag for tag in drawn if tag.count("/") == 1]
    assert len(own) == 1 and own[0].startswith("eval/loss_")
    assert sum(tag.startswith("eval/set-") for tag in drawn) == 3
    for tag in drawn:
        prefix = tag.rpartition("/")[0]
        assert sum(f"{run.tensorboard}/eval, {prefix}/* at step 12" in err for err in told) == 1

"""Conversations mixed with captions on a real Slurm: preempted, on other GPUs, the same samples."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mgpt4_hpc.data.sources.pack_conversations import pack_conversations
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.slurm.jobs import mgpt4, preempt, submit, wait_finished, wait_for_step
from tests.support.runs import assert_every_step_once, curve, final_projector, last_step
from tests.support.tiny_world import REFERENCE, WORDS, TinyWorld

pytestmark = pytest.mark.slurm

STEPS = 120


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


@pytest.fixture(scope="module")
def config(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conversations")
    talks = write_conversations(folder)
    captions = {"name": "cc_sbu_align", "path": str(tiny_world.align), "weight": 1}
    sources = [{"name": "talks", "path": str(talks), "weight": 1}, captions]
    return tiny_world.write_config(
        folder / "talk.yaml", stage=2, train__max_steps=STEPS, train__global_batch_size=8,
        train__micro_batch_size=4, model__projector=str(REFERENCE / "pretrained_minigpt4.pth"),
        data={"num_workers": 1, "sources": sources},
    )  # fmt: skip


def test_conversations_and_captions_survive_preemptions_and_other_gpus(
    cluster: Cluster, config: Path, tmp_path: Path
) -> None:
    """Each step has one loss, and it is that of the run left alone: of the same samples."""
    names = ("alone", "twice", "moved")
    alone, twice, moved = (tmp_path / name for name in names)
    submit(cluster, tmp_path, config, "alone", "--partition", "a100-preempt")
    wait_finished(cluster, alone)

    submit(cluster, tmp_path, config, "twice", "--partition", "a100-preempt")
    for attempt in (1, 2):
        wait_for_step(cluster, twice, last_step(twice) + 10)
        preempt(cluster)
        cluster.wait_until(
            lambda number=attempt: len(read_ledgers(twice / "ledger")) > number, 180, "it is back"
        )
    wait_finished(cluster, twice)
    causes = [attempt.cause for attempt in read_ledgers(twice / "ledger")]
    assert causes == ["preempted", "preempted", "finished"]
    assert_every_step_once(twice, STEPS)
    assert final_projector(twice) == final_projector(alone)
    assert curve(twice) == curve(alone)

    submit(cluster, tmp_path, config, "moved", "--partition", "a100-preempt")
    wait_for_step(cluster, moved, 10)
    preempt(cluster)
    cluster.wait_until(lambda: len(read_ledgers(moved / "ledger")) > 1, 180, "it is back")
    wait_for_step(cluster, moved, last_step(moved) + 10)
    mgpt4(cluster, tmp_path, "cancel", "moved", "--save")
    mgpt4(cluster, tmp_path, "resume", "moved", "--gpus", "1", "--nodes", "1")
    wait_for_step(cluster, moved, last_step(moved) + 10)
    preempt(cluster)
    wait_finished(cluster, moved)
    assert_every_step_once(moved, STEPS)
    for (step, ours), (_, theirs) in zip(curve(moved), curve(alone), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4), step

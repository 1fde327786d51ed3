"""Conversations mixed with captions on a real Slurm: preempted, on other GPUs, the same samples."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.slurm.jobs import MAX_STEPS, mgpt4, preempt, submit, wait_finished, wait_for_step
from tests.support.conversations import write_conversations
from tests.support.runs import assert_every_step_once, curve, final_projector, last_step
from tests.support.tiny_world import REFERENCE, TinyWorld

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def config(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("conversations")
    talks = write_conversations(folder)
    captions = {"name": "cc_sbu_align", "path": str(tiny_world.align), "weight": 1}
    sources = [{"name": "talks", "path": str(talks), "weight": 1}, captions]
    return tiny_world.write_config(
        folder / "talk.yaml", stage=2, train__max_steps=MAX_STEPS, train__global_batch_size=16,
        train__micro_batch_size=4, model__projector=str(REFERENCE / "pretrained_minigpt4.pth"),
        data={"num_workers": 1, "sources": sources},
    )  # fmt: skip


def state(cluster: Cluster, run: Path) -> str:
    """What `mgpt4 status` shows of a run."""
    shown = json.loads(mgpt4(cluster, run.parent, "status", run.name, "--json").stdout)
    return str(shown[0]["state"])


@pytest.fixture
def alone(cluster: Cluster, config: Path, tmp_path: Path) -> Path:
    """The run that is left alone."""
    submit(cluster, tmp_path, config, "alone", "--partition", "a100-preempt")
    wait_finished(cluster, tmp_path / "alone")
    return tmp_path / "alone"


def test_conversations_and_captions_survive_two_preemptions(
    cluster: Cluster, config: Path, alone: Path, tmp_path: Path
) -> None:
    twice = tmp_path / "twice"
    submit(cluster, tmp_path, config, "twice", "--partition", "a100-preempt")
    for attempt in (1, 2):
        wait_for_step(cluster, twice, last_step(twice) + 10)
        preempt(cluster, twice)
        cluster.wait_until(
            lambda number=attempt: len(read_ledgers(twice / "ledger")) > number, 180, "it is back"
        )
    wait_finished(cluster, twice)
    causes = [attempt.cause for attempt in read_ledgers(twice / "ledger")]
    assert causes == ["preempted", "preempted", "finished"]
    assert_every_step_once(twice, MAX_STEPS)
    assert final_projector(twice) == final_projector(alone)
    assert curve(twice) == curve(alone)


@pytest.mark.soak
def test_on_other_gpus_the_samples_are_the_same(
    cluster: Cluster, config: Path, alone: Path, tmp_path: Path
) -> None:
    """Each step has one loss, and it is that of the run left alone: of the same samples."""
    moved = tmp_path / "moved"
    submit(cluster, tmp_path, config, "moved", "--partition", "a100-preempt")
    wait_for_step(cluster, moved, 10)
    preempt(cluster, moved)
    cluster.wait_until(lambda: len(read_ledgers(moved / "ledger")) > 1, 180, "it is back")
    wait_for_step(cluster, moved, last_step(moved) + 10)
    mgpt4(cluster, tmp_path, "cancel", "moved", "--save")
    cluster.wait_until(lambda: state(cluster, moved) == "cancelled", 60, "it is cancelled")
    mgpt4(cluster, tmp_path, "resume", "moved", "--gpus", "1", "--nodes", "1")
    wait_for_step(cluster, moved, last_step(moved) + 10)
    preempt(cluster, moved)
    wait_finished(cluster, moved)
    assert_every_step_once(moved, MAX_STEPS)
    for (step, ours), (_, theirs) in zip(curve(moved), curve(alone), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-4), step

"""An interrupted run ends with the same bits as one that was never touched; no Slurm involved."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.support.runs import (
    ForkedRanks,
    assert_every_step_once,
    curve,
    final_projector,
    last_step,
    wait_until,
)
from tests.support.tiny_world import TinyWorld

MAX_STEPS = 60


@pytest.fixture(scope="module")
def ranks() -> Iterator[ForkedRanks]:
    forked = ForkedRanks()
    yield forked
    forked.close()


def make_run(world: TinyWorld, path: Path, world_size: int, **changes: object) -> Path:
    settings = {
        "train__max_steps": MAX_STEPS,
        "train__global_batch_size": 8,
        "train__micro_batch_size": 1,
        "launch__gpus": world_size,
        **changes,
    }
    file = world.write_config(path.with_suffix(".yaml"), **settings)
    resolved = load_config(file)
    run = RunDir(path)
    run.create({"name": path.name, "stage": 1})
    write_config(run.config_file, resolved)
    return path


def train_through(ranks: ForkedRanks, run: Path, world_size: int) -> None:
    ranks.start(run, world_size)
    assert ranks.wait() == [0] * world_size


def train_until(ranks: ForkedRanks, run: Path, world_size: int, step: int) -> None:
    """Train until ``step`` is told, then TERM to every rank, as Slurm does."""
    pids = ranks.start(run, world_size)
    wait_until(lambda: last_step(run) >= step, 60, f"step {step}")
    ranks.terminate(pids)
    assert ranks.wait() == [75] * world_size
    assert last_step(run) < MAX_STEPS, "the run was over before it was interrupted"


@pytest.mark.parametrize("world_size", [1, pytest.param(2, marks=pytest.mark.soak), 4])
def test_an_interrupted_run_ends_bit_identical(
    ranks: ForkedRanks, tiny_world: TinyWorld, tmp_path: Path, world_size: int
) -> None:
    alone = make_run(tiny_world, tmp_path / "alone", world_size)
    train_through(ranks, alone, world_size)

    broken = make_run(tiny_world, tmp_path / "broken", world_size)
    train_until(ranks, broken, world_size, step=5)
    train_until(ranks, broken, world_size, step=last_step(broken) + 3)
    train_through(ranks, broken, world_size)

    assert final_projector(broken) == final_projector(alone)
    assert curve(broken) == curve(alone)
    assert_every_step_once(broken, MAX_STEPS)
    attempts = read_ledgers(broken / "ledger")
    assert [a.cause for a in attempts] == ["preempted", "preempted", "finished"]
    assert sum(a.steps_replayed for a in attempts) == 0


def test_a_resume_on_other_ranks_goes_on_with_the_same_samples(
    ranks: ForkedRanks, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    alone = make_run(tiny_world, tmp_path / "alone", 2)
    train_through(ranks, alone, 2)
    moved = make_run(tiny_world, tmp_path / "moved", 2)
    train_until(ranks, moved, 2, step=5)
    train_until(ranks, moved, 3, step=last_step(moved) + 3)
    train_through(ranks, moved, 1)

    ours, theirs = dict(curve(moved)), dict(curve(alone))
    assert ours.keys() == theirs.keys()
    assert max(abs(ours[step] - theirs[step]) for step in ours) < 1e-4


def test_accumulation_and_slicing_do_not_change_the_loss(
    ranks: ForkedRanks, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    curves = []
    for world_size, micro in ((1, 8), (1, 2), (2, 4)):
        run = make_run(
            tiny_world,
            tmp_path / f"w{world_size}m{micro}",
            world_size,
            train__max_steps=12,
            train__micro_batch_size=micro,
        )
        train_through(ranks, run, world_size)
        curves.append(dict(curve(run)))
    for other in curves[1:]:
        assert max(abs(other[step] - curves[0][step]) for step in other) < 1e-4


def test_a_run_finds_its_damaged_checkpoint_and_goes_on_from_the_one_before(
    ranks: ForkedRanks, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    alone = make_run(tiny_world, tmp_path / "alone", 1)
    train_through(ranks, alone, 1)
    broken = make_run(tiny_world, tmp_path / "broken", 1)
    train_until(ranks, broken, 1, step=5)
    train_until(ranks, broken, 1, step=last_step(broken) + 3)
    newest = max((broken / "checkpoints").glob("step-*"))
    file = newest / "projector.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    train_through(ranks, broken, 1)

    assert final_projector(broken) == final_projector(alone)
    assert_every_step_once(broken, MAX_STEPS)
    last = read_ledgers(broken / "ledger")[-1]
    assert last.damaged[0]["path"] == newest.name
    assert last.steps_replayed > 0
    assert list((broken / "checkpoints").glob("bad-step-*"))


def test_changed_data_is_refused(ranks: ForkedRanks, tiny_world: TinyWorld, tmp_path: Path) -> None:
    import shutil

    shards = tmp_path / "shards"
    shutil.copytree(tiny_world.shards("laion"), shards)
    sources = [{"name": "laion", "path": str(shards)}]
    run = make_run(tiny_world, tmp_path / "run", 1, data__sources=sources)
    train_until(ranks, run, 1, step=3)
    (shards / "00001.tar").unlink()
    ranks.start(run, 1)
    assert ranks.wait() == [1]
    fault = [r for r in read_ledgers(run / "ledger")[-1].faults if r["what"] == "RunLocked"]
    assert "index laion" in fault[0]["reason"]


def test_held_out_loss_is_drawn_and_never_trained_on(
    ranks: ForkedRanks, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    run = make_run(
        tiny_world,
        tmp_path / "run",
        2,
        train__max_steps=10,
        train__eval_every_steps=5,
        data__val_fraction=0.2,
    )
    train_through(ranks, run, 2)
    points = curve(run, "val/loss")
    assert [step for step, _ in points] == [5, 10]
    assert all(0 < loss < 20 for _, loss in points)
    assert_every_step_once(run, 10)


def test_weights_read_by_one_rank_for_all_give_the_same_bits(
    ranks: ForkedRanks, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    runs = {
        choice: make_run(
            tiny_world, tmp_path / choice, 2, train__max_steps=4, model__read_once_per_node=choice
        )
        for choice in ("yes", "no")
    }
    for run in runs.values():
        train_through(ranks, run, 2)
    assert final_projector(runs["yes"]) == final_projector(runs["no"])
    assert curve(runs["yes"]) == curve(runs["no"])


def test_a_sharded_language_model_gives_the_same_bits(
    ranks: ForkedRanks, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    """Three samples a step over two ranks: one has two micro-batches, the other has one."""
    settings = {
        "train__global_batch_size": 3,
        "train__micro_batch_size": 1,
        "train__max_steps": 8,
        "train__eval_every_steps": 4,
        "train__eval_samples": 3,
        "data__val_fraction": 0.2,
        "model__activation_checkpointing": 1.0,
    }
    runs = {
        sharded: make_run(
            tiny_world, tmp_path / f"sharded-{sharded}", 2, model__shard_llm=sharded, **settings
        )
        for sharded in (False, True)
    }
    for run in runs.values():
        train_through(ranks, run, 2)
    assert final_projector(runs[True]) == final_projector(runs[False])
    assert curve(runs[True]) == curve(runs[False])
    assert curve(runs[True], "val/loss") == curve(runs[False], "val/loss") != []

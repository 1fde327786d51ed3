"""Rank 0's saving on a real store: due by the clock, the last one durable, or a loud end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mgpt4_hpc.checkpoint.filesystem import FileSystem
from mgpt4_hpc.checkpoint.saver import AsyncSaver
from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.errors import CheckpointError, Overtaken
from mgpt4_hpc.train.recorder import Recorder
from mgpt4_hpc.train.saving import FirstRankSaving, SavePolicy, Saving
from mgpt4_hpc.train.state import TrainState


class Guard:
    """Fails so many times, then lets through."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)

    def __call__(self) -> None:
        if self.errors:
            raise self.errors.pop(0)


Make = Callable[..., tuple[FirstRankSaving, CheckpointStore]]


@pytest.fixture
def make(tmp_path: Path):
    savers = []

    def made(
        *errors: Exception,
        save_every_s: float = 1e9,
        every_steps: tuple[int, ...] = (),
        keep_best: str | None = None,
        keep_last: int = 9,
        restored_step: int | None = None,
        filesystem: FileSystem | None = None,
    ):
        store = CheckpointStore(
            tmp_path / "checkpoints", keep_last=keep_last, filesystem=filesystem
        )
        savers.append(AsyncSaver(store, guard=Guard(*errors)))
        saving = FirstRankSaving(
            savers[-1],
            lambda: {"projector": {"weight": torch.ones(2)}},
            lambda state: {"samples_seen": state.samples_seen},
            Recorder(),
            policy=SavePolicy(save_every_s, every_steps, keep_best),
            restored_step=restored_step,
        )
        return saving, store

    yield made
    for saver in savers:
        saver.close(timeout=10)


def test_the_last_save_is_durable_when_it_returns(make: Make) -> None:
    saving, store = make()
    saving.save_now(TrainState(7, 70))
    assert saving.durable_step == 7
    newest = store.load_newest()
    assert newest is not None and (newest.step, newest.meta["samples_seen"]) == (7, 70)


def test_it_is_tried_twice(make: Make) -> None:
    saving, store = make(OSError(28, "No space left on device"))
    saving.save_now(TrainState(7, 70))
    assert store.steps() == [7]


class Flips(FileSystem):
    """A disk that changes a byte of as many files as it is told to, and says nothing."""

    def __init__(self, times: int) -> None:
        self.times = times

    def write(self, fd: int, data: memoryview) -> None:
        changed = bytearray(data)
        if self.times:
            self.times -= 1
            changed[-1] ^= 1
        super().write(fd, memoryview(changed))


@pytest.mark.parametrize(("lies", "finished"), [(1, True), (1000, False)])
def test_a_last_save_that_does_not_read_back_is_made_again(
    make: Make, lies: int, finished: bool
) -> None:
    saving, store = make(filesystem=Flips(lies))
    if finished:
        saving.save_now(TrainState(7, 70))
        newest = store.load_newest()
        assert newest is not None and newest.step == 7
    else:
        with pytest.raises(CheckpointError, match="step 7 could not be saved"):
            saving.save_now(TrainState(7, 70))


def test_a_last_save_that_fails_is_no_end_to_be_proud_of(make: Make) -> None:
    full = [OSError(28, "No space left on device") for _ in range(2)]
    saving, store = make(*full, restored_step=3)
    with pytest.raises(
        CheckpointError, match=r"step 7 could not be saved.*No space left"
    ) as caught:
        saving.save_now(TrainState(7, 70))
    assert "of step 3" in caught.value.why and not caught.value.will_repeat
    assert store.steps() == []


def test_whoever_was_overtaken_stops_training(make: Make) -> None:
    saving, _ = make(Overtaken("attempt 2 owns the run"), save_every_s=1e-9)
    saving.start_clock()
    saving.save_if_due(TrainState(5, 50))
    saving.saver.wait()
    with pytest.raises(Overtaken):
        saving.save_if_due(TrainState(6, 60))


def test_whoever_was_overtaken_before_the_last_save_learns_it_there(make: Make) -> None:
    saving, _ = make(Overtaken("attempt 2 owns the run"))
    with pytest.raises(Overtaken):
        saving.save_now(TrainState(5, 50))


def test_another_failure_on_the_way_is_survived(make: Make) -> None:
    saving, store = make(OSError(28, "No space left on device"), save_every_s=1e-9)
    for step in (5, 6):
        saving.start_clock()  # or the interval would grow with the first save's stall
        saving.save_if_due(TrainState(step, step))
        saving.saver.wait()
    assert store.steps() == [6] and saving.durable_step == 6


def test_it_is_not_due_before_its_time(make: Make) -> None:
    saving, store = make(save_every_s=3600.0)
    saving.start_clock()
    saving.save_if_due(TrainState(5, 50))
    saving.saver.wait()
    assert store.steps() == []


def test_each_multiple_is_saved_however_fast_the_steps_are(make: Make) -> None:
    saving, store = make(every_steps=(3, 4))
    saving.start_clock()
    taken = [step for step in range(1, 13) if saving.save_if_due(TrainState(step, 10 * step))]
    saving.saver.wait()
    assert taken == store.steps() == [3, 4, 6, 8, 9, 12]


@pytest.mark.parametrize("best", ["val/loss", "failure"])
def test_the_best_stays_until_a_better_one_is_durable(make: Make, best: str) -> None:
    saving, store = make(every_steps=(1,), keep_best=best, keep_last=1)
    losses = [3.0, 2.0, 2.5, 2.5, float("nan"), 1.0, 4.0, 4.0]
    state, kept = TrainState(), []
    for loss in losses:
        state.advance(10)
        state.validated(loss if best == "val/loss" else 0.0)
        if best != "val/loss":
            state.scored({"caption": -state.step, best: -min(loss, 3.0)})
        saving.save_if_due(state)
        saving.saver.wait()
        kept.append(store.steps())
    assert kept == [[1], [2], [2, 3], [2, 4], [2, 5], [6], [6, 7], [6, 8]]


def test_a_better_loss_is_saved_at_its_own_step(make: Make) -> None:
    saving, store = make(keep_best="val/loss")
    state = TrainState(5, 50)
    state.validated(2.0)
    assert saving.save_if_due(state)
    state.advance(10)
    assert not saving.save_if_due(state), "the best is of another step"
    saving.saver.wait()
    assert store.steps() == [5]


def test_what_was_restored_or_never_trained_needs_no_save(make: Make) -> None:
    saving, store = make(restored_step=4)
    saving.save_now(TrainState(4, 40))
    assert store.steps() == [] and saving.durable_step == 4
    fresh, store = make()
    fresh.save_now(TrainState(0, 0))
    assert store.steps() == [] and fresh.durable_step is None


def test_other_ranks_save_nothing() -> None:
    saving = Saving()
    saving.start_clock()
    assert not saving.save_if_due(TrainState(1, 1))
    saving.save_now(TrainState(1, 1))
    assert saving.durable_step is None

"""The counters of a run."""

from __future__ import annotations

from mgpt4_hpc.train.state import TrainState


def test_the_lowest_held_out_loss_and_the_worse_ones_since() -> None:
    state = TrainState()
    lowest = []
    for loss in (3.0, float("nan"), 2.0, 2.0, 2.5):
        state.advance(samples=8, replaced=1)
        lowest.append(state.validated(loss))
    assert lowest == [True, False, True, False, False]
    assert (state.best_step, state.best_loss, state.num_worse) == (3, 2.0, 2)
    state.scored({"failure": -0.5})
    state.step += 1
    for value in (-0.25, -0.25, -0.5):
        state.step += 1
        state.scored({"failure": value})
    assert state.best_scores == {"failure": (8, -0.25)}
    state.step = 5
    assert (state.validated_step, state.samples_seen, state.samples_replaced) == (5, 40, 5)


def test_scores_that_a_save_still_writes_do_not_change() -> None:
    state = TrainState(step=50)
    state.scored({"failure": -0.5})
    written = state.best_scores
    state.step = 60
    state.scored({"failure": -0.25})
    assert written == {"failure": (50, -0.5)}

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
    assert (state.validated_step, state.samples_seen, state.samples_replaced) == (5, 40, 5)

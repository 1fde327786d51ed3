"""Held-out samples by position, source by source."""

from __future__ import annotations

import pytest

from mgpt4_hpc.data.sampling.order import SampleOrder, SourceSize
from mgpt4_hpc.data.sampling.sample_source import TrainDraws, ValDraws, spread_ordinals

ORDER = SampleOrder([SourceSize("a", 5000), SourceSize("b", 3000)], 3, val_fraction=0.1)


def test_each_held_out_sample_has_one_position_and_none_is_trained_on() -> None:
    held_out = ValDraws(ORDER)
    drawn = held_out.at(range(len(held_out)))
    assert len(set(drawn)) == len(held_out) > 0 and [s for s, _ in drawn] == sorted(
        s for s, _ in drawn
    )
    trained = set(TrainDraws(ORDER).at(range(20_000)))
    assert not trained & set(drawn)
    assert (0, held_out.substitute(0, 4, 1)) in drawn
    assert (1, TrainDraws(ORDER).substitute(1, 4, 1)) not in drawn
    with pytest.raises(IndexError, match=f"there are {len(held_out)}"):
        held_out.at([len(held_out)])


def test_a_part_is_taken_evenly_from_all() -> None:
    assert spread_ordinals(range(4), 10, 4) == [0, 2, 5, 7]
    assert spread_ordinals(range(2, 4), 10, 4) == [5, 7]

"""The learning rate against values computed by hand from the original's formula."""

from __future__ import annotations

import math

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.train.schedule import WarmupCosine

STAGE1 = WarmupCosine(1e-4, 8e-5, 1e-6, 5000, 20000)


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 1e-6),
        (1, 1e-6 + 9.9e-5 / 5000),
        (2500, 5.05e-5),
        (4999, 1e-4 - 9.9e-5 / 5000),
        # The cosine runs over all steps, so that the peak is never reached: 9.71e-5.
        (5000, 8e-5 + 1e-5 * (1 + math.sqrt(0.5))),
        (10000, 9e-5),
        (19999, 8e-5 + 1e-5 * (1 + math.cos(math.pi * 19999 / 20000))),
    ],
)
def test_stage_1(step: int, lr: float) -> None:
    assert STAGE1(step) == pytest.approx(lr, rel=1e-12)


def test_right_after_the_warm_up_it_is_below_the_peak() -> None:
    assert f"{STAGE1(5000):.3g}" == "9.71e-05"
    assert max(map(STAGE1, range(20000))) == STAGE1(4999)


def test_without_warm_up_it_starts_at_the_peak() -> None:
    schedule = WarmupCosine(3e-5, 1e-5, 1e-6, 0, 1000)
    assert schedule(0) == pytest.approx(3e-5) and schedule(999) == pytest.approx(1e-5, rel=1e-3)


def test_a_start_above_the_peak_is_cut_to_it() -> None:
    assert WarmupCosine(1e-5, 0.0, 1e-3, 10, 100)(0) == 1e-5


def test_it_is_read_from_the_settings() -> None:
    config = load_config("stage1-vicuna7b").config.train
    assert WarmupCosine.from_config(config) == STAGE1


def test_beyond_its_cosine_a_run_has_the_lowest_rate() -> None:
    config = load_config("stage1-vicuna7b", overrides={"train.max_steps": 50000}).config.train
    longer = WarmupCosine.from_config(config.model_copy(update={"lr_steps": 20000}))
    assert longer == STAGE1
    assert longer(20000) == longer(35000) == longer(49999) == 8e-5


def test_a_longer_cosine_applies_from_the_step_on_at_which_it_is_given() -> None:
    """As ``mgpt4 resume --set max_steps=40000 --set lr_steps=40000`` at step 10,000."""
    preset = load_config("stage1-vicuna7b").config.train
    doubled = preset.model_copy(update={"max_steps": 40000, "lr_steps": 40000})
    longer = WarmupCosine.from_config(doubled)
    assert longer(10000) == pytest.approx(8e-5 + 1e-5 * (1 + math.sqrt(0.5)), rel=1e-12)
    assert longer(10000) > STAGE1(10000) == pytest.approx(9e-5, rel=1e-12)
    assert longer(20000) == pytest.approx(9e-5, rel=1e-12)
    assert longer(40000) == 8e-5
    assert [longer(step) for step in range(5000)] == [STAGE1(step) for step in range(5000)]

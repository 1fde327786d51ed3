"""Epochs become steps; what is set last holds."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from mgpt4_hpc.config.load import (
    merge,
)
from mgpt4_hpc.errors import ConfigError

# -- epochs ------------------------------------------------------------------------------------


def convert(values: Mapping[str, object]) -> tuple[int, str]:
    return 30 * int(str(values["train.max_epochs"])), "told"


@pytest.mark.parametrize(
    ("layers", "steps", "epochs"),
    [
        ([{"train.max_steps": 5}, {"train.max_epochs": 2}], 60, 2),
        ([{"train.max_epochs": 2}], 60, 2),
        ([{"train.max_epochs": 2}, {"train.max_steps": 5}], 5, None),
        # A run's own settings have both, and stay as they are.
        ([{"train.max_epochs": 2, "train.max_steps": 5}, {"train.lr": 0.1}], 5, 2),
        ([{"train.max_epochs": 2, "train.max_steps": 5}, {"train.max_steps": 7}], 7, None),
        ([{"train.max_epochs": 2, "train.max_steps": 5}, {"train.max_epochs": 3}], 90, 3),
        ([{"train.max_steps": 5}, {"train.max_epochs": None}], 5, None),
    ],
)
def test_epochs_and_steps_hold_as_they_were_set_last(
    layers: list[dict[str, object]], steps: int, epochs: float | None
) -> None:
    base = {
        "stage": 1,
        "data.sources": [{"name": "a"}],
        "train.global_batch_size": 1,
        "train.micro_batch_size": 1,
        "train.lr": 0.1,
    }
    resolved = merge([("base", base), *(("layer", layer) for layer in layers)], (), convert)
    assert (resolved.config.train.max_steps, resolved.config.train.max_epochs) == (steps, epochs)
    assert resolved.notes == (("told",) if steps in (60, 90) else ())
    if resolved.notes:
        assert resolved.origin("train.max_steps") == f"train.max_epochs {epochs}"
        with pytest.raises(ConfigError, match=r"train\.max_steps here"):
            merge([("base", base), *(("layer", layer) for layer in layers)])

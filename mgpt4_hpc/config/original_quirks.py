"""One switch for the original's quirks: ``faithful: true``.

Each of them has a switch of its own, whose default is what we think right; ``docs/fidelity.md``
has the reasons. The switch is resolved when a configuration is put together, so that a run's
``config.yaml`` shows what it really did, with the origin "faithful".
"""

from __future__ import annotations

from typing import Any

ORIGIN = "faithful"

ORIGINAL_VALUES: dict[str, Any] = {
    "model.precision": "fp16",
    "model.vision_precision": "fp16",
    "model.ln_vision": "identity",
    "data.resize": "squash",
    "text.prompt_per": "batch",
    "text.keep_end_symbol": False,
    "text.learn_padding_token": False,
    "text.parse_control_tokens": True,
    "train.loss_reduction": "rank_mean",
    "train.max_grad_norm": 0.0,
}
"""What the original does, by setting."""


def apply_faithful(values: dict[str, Any], origins: dict[str, str]) -> None:
    """Fill the settings that are not set, in place, if ``faithful`` is on."""
    if values.get("faithful") is not True:
        return
    wanted = dict(ORIGINAL_VALUES)
    if "train.micro_batch_size" in values:
        # The original draws a source for each rank's batch.
        wanted["data.granularity"] = values["train.micro_batch_size"]
    for key, value in wanted.items():
        if key not in values:
            values[key] = value
            origins[key] = ORIGIN


def contradictions(values: dict[str, Any]) -> list[str]:
    """Settings that are set explicitly to something else than ``faithful: true`` means.

    Args:
        values: values of the settings above that are set explicitly.
    """
    return [
        f"{key} is {values[key]!r}, but faithful: true means {value!r} (leave one of them out)"
        for key, value in ORIGINAL_VALUES.items()
        if key in values and values[key] != value
    ]

"""``train.max_epochs`` and ``train.max_steps``: two ways to say when a run ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mgpt4_hpc.errors import MgptError

EPOCHS, STEPS = "train.max_epochs", "train.max_steps"

ConvertEpochs = Callable[[Mapping[str, Any]], tuple[int, str]]
"""From settings by dotted key to their steps and that as a sentence; may raise MgptError."""


class StepCount:
    """Which of the two holds while layers of settings are laid over one another: the later one.

    Settings that have both are those of a run; its submission converted the epochs.

    Attributes:
        notes: the conversion as a sentence, if there was one.
    """

    def __init__(self) -> None:
        self.notes: tuple[str, ...] = ()
        self._by_epochs = False
        self._in_steps = False

    def see(self, layer: Mapping[str, Any]) -> None:
        """Take the next layer, above those before."""
        has_steps = layer.get(STEPS) is not None
        if layer.get(EPOCHS) is not None:
            self._by_epochs, self._in_steps = not has_steps, False
        elif has_steps:
            self._by_epochs, self._in_steps = False, True

    def settle(
        self, values: dict[str, Any], origins: dict[str, str], convert: ConvertEpochs | None
    ) -> list[str]:
        """Set the steps of the epochs that hold, or drop epochs that do not; returns the faults."""
        if self._in_steps and values.get(EPOCHS) is not None:
            values[EPOCHS] = None
        if not self._by_epochs:
            return []
        if convert is None:
            return [f"{EPOCHS} is converted when a run is first submitted: give {STEPS} here"]
        try:
            values[STEPS], note = convert(values)
        except MgptError as error:
            values.setdefault(STEPS, 1)
            return [f"{error.what}; fix: {error.fix}" if error.fix else error.what]
        self.notes = (note,)
        origins[STEPS] = f"{EPOCHS} {values[EPOCHS]:g}"
        return []

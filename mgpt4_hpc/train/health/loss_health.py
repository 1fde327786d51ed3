"""Is this training still worth its GPUs? Asked at every report, of numbers that are on the CPU."""

from __future__ import annotations

from mgpt4_hpc.errors import FatalTrainingError
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.train.recorder import Recorder

STUCK_WITHIN = 0.05
"""Nats around ln(vocabulary): a model that answers anything at all is far below."""

STUCK_REPORTS = 10
"""Reports in a row after which it is no coincidence of a few batches."""


class Health:
    """Warns of a loss that says "uniform output", and stops a run of broken steps.

    Args:
        recorder: prints and records what is wrong; silent on all ranks but the first.
        max_nonfinite_steps: broken steps that are forgiven over the whole run.
        uniform_loss: ln(vocabulary), the loss of a model that knows nothing; None where unknown.
    """

    def __init__(
        self, recorder: Recorder, *, max_nonfinite_steps: int, uniform_loss: float | None
    ) -> None:
        self._recorder = recorder
        self._limit = max_nonfinite_steps
        self._uniform_loss = uniform_loss
        self._uniform_reports = 0
        self._nonfinite_steps: int | None = None

    def look(self, step: int, loss: float, nonfinite_steps: int) -> None:
        """Judge one report.

        Args:
            step: steps completed.
            loss: of the last step, over all ranks.
            nonfinite_steps: broken steps since the run began.

        Raises:
            FatalTrainingError: if there were too many.
        """
        self._look_at_steps(step, loss, nonfinite_steps)
        self._look_at_loss(step, loss)

    def _look_at_steps(self, step: int, loss: float, nonfinite_steps: int) -> None:
        before, self._nonfinite_steps = self._nonfinite_steps, nonfinite_steps
        if nonfinite_steps > (before or 0):
            self._warn(
                "nonfinite steps",
                step,
                f"{nonfinite_steps} steps had a NaN or infinite loss or gradient so far and were "
                f"skipped; the run stops after {self._limit}",
            )
        if nonfinite_steps > self._limit:
            raise FatalTrainingError(
                f"{nonfinite_steps} steps had a NaN or infinite loss or gradient, "
                f"train.max_nonfinite_steps allows {self._limit} (the last loss was {loss})",
                why="the learning rate is too high, the weights are broken, or fp16 overflows",
                fix="lower train.lr, run `mgpt4 weights check`, or use model.precision bf16",
            )

    def _look_at_loss(self, step: int, loss: float) -> None:
        uniform = self._uniform_loss
        if uniform is None or not abs(loss - uniform) < STUCK_WITHIN:
            self._uniform_reports = 0
            return
        self._uniform_reports += 1
        if self._uniform_reports == STUCK_REPORTS:
            self._warn(
                "loss stuck at ln(vocabulary)",
                step,
                f"the loss {loss:.3f} stays at ln(vocabulary) = {uniform:.3f}: the language model "
                "gives every token the same chance. Its weights are probably broken or of another "
                "model (`mgpt4 weights check`), or the learning rate is far too high",
            )

    def _warn(self, what: str, step: int, reason: str) -> None:
        self._recorder.event(Kind.FAULT, what=what, step=step, reason=reason)
        self._recorder.say(f"WARNING: {reason}")

"""What rank 0 records: curves, ledger, heartbeat and a line on stdout.

The other ranks hold a recorder that is silent, so that the loop has no branches by rank.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mgpt4_hpc.config import keys
from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.data.batching.batch import Substitution
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry import tags
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.heartbeat import Heartbeat
from mgpt4_hpc.telemetry.ledger import Ledger, append_hang, read_changes, read_ledgers
from mgpt4_hpc.telemetry.run_card import hyperparameters, text_card
from mgpt4_hpc.telemetry.tensorboard import TensorBoardWriter
from mgpt4_hpc.telemetry.time_buckets import PRODUCTIVE
from mgpt4_hpc.train.health.watchdog import Hang


def say_at_each_rank(text: str) -> None:
    """Print a line with the time, unbuffered, for this rank's log."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


@dataclass
class HangNote:
    """Writes a watchdog's finding into the ledger, whichever rank it is.

    Attributes:
        folder: RUN/ledger.
        rank: this process.
        attempt: its number; None as long as there is none, and then nothing is written.
    """

    folder: Path
    rank: int
    attempt: int | None = None

    def __call__(self, hang: Hang) -> None:
        """Append the line. Raises OSError."""
        if self.attempt is not None:
            host = os.uname().nodename
            append_hang(self.folder, self.attempt, self.rank, host=host, **asdict(hang))


class Recorder:
    """What the loop records to; this one, of every rank but the first, writes nothing."""

    def event(self, kind: Kind, **fields: object) -> None:
        """Write nothing."""

    def say(self, text: str) -> None:
        """Print nothing."""

    def open_curves(self, restored_step: int) -> None:
        """Open nothing."""

    def changed(self, step: int, what: Sequence[str]) -> None:
        """Note nothing."""

    def flush(self) -> None:
        """Have nothing to write."""

    def beat(self, step: int) -> None:
        """Give no sign of life."""

    def logged(
        self, step: int, values: Mapping[str, float], buckets: Mapping[str, float], line: str
    ) -> None:
        """Write nothing."""

    def answered(self, step: int, cards: Mapping[str, bytes], texts: Mapping[str, str]) -> None:
        """Show nothing."""

    def substituted(self, substitutions: Sequence[Substitution]) -> None:
        """Write nothing."""

    def saved(self, step: int, path: Path, seconds: float, stall_s: float | None = None) -> None:
        """Write nothing."""

    def save_failed(self, step: int, error: Exception) -> None:
        """Write nothing."""

    def close(self) -> None:
        """Have nothing to close."""


class FirstRankRecorder(Recorder):
    """Rank 0's recorder.

    Args:
        run: where ledger, curves and heartbeat lie.
        attempt: number of this attempt.
    """

    def __init__(self, run: RunDir, attempt: int) -> None:
        self.run = run
        self.attempt = attempt
        self.ledger = Ledger(run.ledger, attempt, run_id=run.run_id)
        self.heartbeat = Heartbeat(run.heartbeat, attempt)
        self.curves: TensorBoardWriter | None = None
        earlier = [a for a in read_ledgers(run.ledger) if a.number < attempt]
        self._first_start = min((a.start for a in earlier), default=time.time())
        self._earlier_productive_s = sum(a.productive_s for a in earlier)
        self._save_failures = 0
        self._step = 0
        self._start: Mapping[str, Any] = {}
        self._earlier_cause = earlier[-1].cause if earlier else ""

    @property
    def _drawn(self) -> TensorBoardWriter:
        """The curves, which :meth:`open_curves` has opened."""
        assert self.curves is not None
        return self.curves

    def event(self, kind: Kind, **fields: object) -> None:
        """Append a line to the attempt's ledger."""
        self.ledger.event(kind, **fields)
        if kind is Kind.START:
            self._start = fields
        elif kind is Kind.END and fields.get("cause") == "finished" and self.curves is not None:
            self.curves.finished(self._step)

    def say(self, text: str) -> None:
        """Print a line with the time, unbuffered, for the job's log."""
        say_at_each_rank(text)

    def open_curves(self, restored_step: int) -> None:
        """Go on drawing after ``restored_step``; what an earlier attempt drew beyond is hidden."""
        purge = restored_step + 1 if self.attempt > 1 or restored_step else None
        curves = self.curves = TensorBoardWriter(self.run.tensorboard, purge_step=purge)
        self._step = restored_step
        after = f"The one before ended: {self._earlier_cause}." if self._earlier_cause else ""
        curves.attempt(restored_step, self.attempt, after)
        resolved = read_config(self.run.config_file)
        settings = keys.flatten(resolved.config.model_dump(mode="json"))
        origins = {key: resolved.origin(key) for key in settings}
        origins = {key: who for key, who in origins.items() if who != "default"}
        values = hyperparameters(settings, list(origins))
        curves.hyperparameters(restored_step, values, self.run.name)
        identity = self.run.identity()
        card = text_card(self.run.name, identity, self._start, settings, origins)
        curves.text(restored_step, tags.CARD, card)
        self._draw_changes(restored_step)

    def changed(self, step: int, what: Sequence[str]) -> None:
        """Note settings that the user changed while the run trains."""
        self.event(Kind.CHANGED, step=step, what=list(what))
        self.say(f"settings changed: {'; '.join(what)}")
        self._draw_changes(step)

    def _draw_changes(self, step: int) -> None:
        """Show all changes of settings so far: a later point replaces an earlier one's text."""
        if noted := read_changes(self.run.ledger):
            self._drawn.text(step, tags.CHANGES, "\n".join(f"- {change}" for change in noted))

    def flush(self) -> None:
        """Bring all points to the file. Called before a checkpoint becomes official.

        A point that a later attempt will not draw again must be on disk before that.
        """
        if self.curves is not None:
            self.curves.flush()

    def beat(self, step: int) -> None:
        """Say that we live, at most every few seconds."""
        self._step = step
        self.heartbeat.beat(step)

    def logged(
        self, step: int, values: Mapping[str, float], buckets: Mapping[str, float], line: str
    ) -> None:
        """Draw the points of one step, note them in the ledger, print ``line``."""
        own = {tags.ATTEMPT: float(self.attempt), tags.GOODPUT: self._goodput(buckets)}
        self._drawn.scalars(step, {**values, **own})
        known: dict[str, Any] = {"step": step, "buckets": dict(buckets)}
        if tags.TRAIN_LOSS in values:
            # JSON has no NaN, and a reader that is no Python would stumble over it.
            loss = values[tags.TRAIN_LOSS]
            known["loss"] = loss if math.isfinite(loss) else None
            known["samples_per_s"] = values.get(tags.SAMPLES_PER_S)
        self.ledger.event(Kind.STEPS, **known)
        self.say(line)

    def _goodput(self, buckets: Mapping[str, float]) -> float:
        """Productive time over the time since the run's first start, queues included."""
        productive_s = self._earlier_productive_s + buckets.get(PRODUCTIVE, 0.0)
        return min(1.0, productive_s / max(time.time() - self._first_start, 1e-9))

    def answered(self, step: int, cards: Mapping[str, bytes], texts: Mapping[str, str]) -> None:
        """Show what was said about held-out images: by task a PNG, and a table in Markdown."""
        for task, png in cards.items():
            self._drawn.picture(step, f"{tags.EVAL}{task}", png)
        for task, text in texts.items():
            self._drawn.text(step, f"{tags.EVAL}{task}_answers", text)

    def substituted(self, substitutions: Sequence[Substitution]) -> None:
        """Note each bad sample and its replacement."""
        for item in substitutions:
            self.ledger.event(Kind.SUBSTITUTION, **asdict(item))
            self.say(f"bad sample {item.key}: {item.reason}; read {item.replaced_by} instead")

    def saved(self, step: int, path: Path, seconds: float, stall_s: float | None = None) -> None:
        """A checkpoint is durable. Called in the saver's thread."""
        self.ledger.event(
            Kind.SAVE,
            step=step,
            durable_s=round(seconds, 4),
            stall_s=None if stall_s is None else round(stall_s, 4),
            path=path.name,
        )
        stalled = {} if stall_s is None else {tags.CHECKPOINT_STALL_S: stall_s}
        self._drawn.scalars(step, {tags.CHECKPOINT_DURABLE_S: seconds, **stalled})

    def save_failed(self, step: int, error: Exception) -> None:
        """A checkpoint could not be written; training goes on. Called in the saver's thread."""
        self._save_failures += 1
        self.ledger.event(Kind.SAVE_FAILED, step=step, reason=str(error))
        self._drawn.scalars(step, {tags.CHECKPOINT_FAILURES: float(self._save_failures)})
        self.say(f"WARNING: checkpoint at step {step} failed, training goes on: {error}")

    def close(self) -> None:
        """Write out and close everything."""
        self.heartbeat.beat(self._step, force=True)
        if self.curves is not None:
            self.curves.close()
        self.ledger.close()

"""From ledger lines to one summary per attempt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mgpt4_hpc.telemetry.event_kinds import RUNNING_CAUSE, UNKNOWN_CAUSE, Kind
from mgpt4_hpc.telemetry.time_buckets import PRODUCTIVE, QUEUE_WAIT, REPLAYED, START_UP, WIND_DOWN

Record = Mapping[str, Any]


@dataclass
class Attempt:
    """One start of a run's job, by its ledger.

    Attributes:
        number: from 1.
        job_id, cluster, restart_count, nodes, hostname, world_size, device, versions: as at its
            start (cluster and restart_count also where only a supervisor recorded them).
        start: unix time in seconds of its process's start, or of its first line.
        end: unix time of its end, or of the last thing known of it.
        ended: whether it, or a supervisor, said that it is over.
        ended_itself: whether it said so itself; otherwise it was killed, or lives.
        restored_step: step of the checkpoint it began from; 0 for a fresh start.
        first_step: its first finished step, None if it never got that far.
        first_step_at: unix time of that.
        last_step: the last step known to be finished (`restored_step` if none).
        cause: why it ended: what itself says, else its supervisor, else "unknown" (or "running"
            for the newest one).
        finished_at: steps of a finished run; None if it is not known.
        early: why a finished run ended before its last step; empty if it did not.
        num_worse: of a finished run the validations since its lowest held-out loss.
        exit_code: of the process, where known.
        steps_replayed: steps that an earlier attempt had done already and this one did again.
        buckets: seconds per bucket of time_buckets.py, `productive` among them; what is missing to
            `end - start` that no bucket holds.
        saves, save_failures: how many.
        last_saved_step: newest durable checkpoint of this attempt.
        substitutions, signals, faults, damaged: as recorded.
        hangs: the reports of ranks that hung.
        save_s: longest time from asking for a checkpoint to having it on disk.
        requeue: the line about the successor, where there is one.
        supervisor: all fields of the supervisor's notes, later ones winning.
    """

    number: int
    job_id: str = ""
    cluster: str = ""
    restart_count: int = 0
    nodes: list[str] = field(default_factory=list)
    hostname: str = ""
    world_size: int = 1
    device: str = ""
    versions: dict[str, str] = field(default_factory=dict)
    start: float = 0.0
    end: float = 0.0
    ended: bool = False
    ended_itself: bool = False
    restored_step: int = 0
    first_step: int | None = None
    first_step_at: float | None = None
    last_step: int = 0
    cause: str = UNKNOWN_CAUSE
    finished_at: int | None = None
    early: str = ""
    num_worse: int = 0
    exit_code: int | None = None
    steps_replayed: int = 0
    buckets: dict[str, float] = field(default_factory=dict)
    saves: int = 0
    save_failures: int = 0
    last_saved_step: int | None = None
    substitutions: int = 0
    signals: list[str] = field(default_factory=list)
    faults: list[dict[str, Any]] = field(default_factory=list)
    damaged: list[dict[str, Any]] = field(default_factory=list)
    hangs: list[dict[str, Any]] = field(default_factory=list)
    save_s: float = 0.0
    requeue: dict[str, Any] | None = None
    supervisor: dict[str, Any] = field(default_factory=dict)
    submitted_at: float | None = None

    @property
    def seconds(self) -> float:
        """Seconds from its start to its end, the queue not included."""
        return max(0.0, self.end - self.start)

    @property
    def productive_s(self) -> float:
        """Seconds spent on steps that no earlier attempt had done."""
        return self.buckets.get(PRODUCTIVE, 0.0)

    @property
    def steps_done(self) -> int:
        """Steps finished, replayed ones included."""
        return max(0, self.last_step - self.restored_step)


def summarise(ledgers: Sequence[tuple[int, Sequence[Record], Sequence[Record]]]) -> list[Attempt]:
    """Summaries of the attempts of one run.

    Args:
        ledgers: per attempt its number, its own lines and its supervisor's notes, in order.
    """
    attempts = [_read(number, records, notes) for number, records, notes in ledgers]
    if attempts and not attempts[-1].ended:
        attempts[-1].cause = RUNNING_CAUSE
    reached = 0
    previous_end: float | None = None
    for attempt in attempts:
        # Counted where the work was really done again. An attempt that died before it caught up
        # leaves the rest to its successor, so the sum over attempts is right.
        repeated = min(reached, attempt.last_step) - attempt.restored_step
        attempt.steps_replayed = max(0, repeated)
        _split_replayed(attempt)
        # Of a requeue the job's submission is long ago; a run that was resumed after days was not
        # in a queue before that.
        queued_at = max(
            (t for t in (attempt.submitted_at, previous_end) if t is not None), default=0
        )
        if queued_at and attempt.start > queued_at:
            attempt.buckets[QUEUE_WAIT] = attempt.start - queued_at
        reached = max(reached, attempt.last_step)
        previous_end = attempt.end
    return attempts


def _split_replayed(attempt: Attempt) -> None:
    """Move the replayed steps' share of the productive seconds into its own bucket."""
    if not attempt.steps_replayed or not attempt.steps_done:
        return
    productive = attempt.buckets.get(PRODUCTIVE, 0.0)
    replayed = productive * attempt.steps_replayed / attempt.steps_done
    attempt.buckets[REPLAYED] = attempt.buckets.get(REPLAYED, 0.0) + replayed
    attempt.buckets[PRODUCTIVE] = productive - replayed


def _read(number: int, records: Sequence[Record], notes: Sequence[Record]) -> Attempt:
    attempt = Attempt(number)
    own = [float(record["t"]) for record in records]
    times = own + [_end_told_by(note) for note in notes]
    attempt.start = min(own or times, default=0.0)
    attempt.end = max(times, default=0.0)
    for record in records:
        _apply(attempt, record)
    _account_for_silence(attempt, records)
    for note in notes:
        attempt.supervisor.update(note)
    _apply_supervisor(attempt)
    attempt.last_step = max(attempt.last_step, attempt.restored_step)
    return attempt


def _end_told_by(note: Record) -> float:
    """Unix time until which the attempt lived, for all that this note knows.

    The next start, which may have waited for hours, writes some of them.
    """
    written_at = float(note["t"])
    ended_at = _float(note.get("ended_at"))
    return written_at if ended_at is None else min(written_at, ended_at)


def _account_for_silence(attempt: Attempt, records: Sequence[Record]) -> None:
    """Attribute unlogged time to start-up or wind-down.

    An attempt without logged seconds was starting up until its first step. One that wrote
    its own end was winding down since its last log. Time before a kill stays unattributed.
    """
    told_at = max((float(r["t"]) for r in records if _has_seconds(r)), default=None)
    if told_at is None:
        until = attempt.end if attempt.first_step_at is None else attempt.first_step_at
        if records:
            attempt.buckets[START_UP] = max(0.0, until - attempt.start)
    elif attempt.ended_itself:
        rest = attempt.seconds - sum(attempt.buckets.values())
        wind_down = min(rest, attempt.end - told_at)
        if wind_down > 0:
            attempt.buckets[WIND_DOWN] = attempt.buckets.get(WIND_DOWN, 0.0) + wind_down


_WITH_STEP = (Kind.FIRST_STEP, Kind.STEPS, Kind.SAVE, Kind.STOP_REQUESTED, Kind.END)
_WITH_SECONDS = (Kind.FIRST_STEP, Kind.STEPS, Kind.FAULT, Kind.END)


def _has_seconds(record: Record) -> bool:
    return isinstance(record.get("buckets"), dict) and record.get("kind") in _WITH_SECONDS


def _apply(attempt: Attempt, record: Record) -> None:
    kind = record.get("kind")
    if kind == Kind.START:
        attempt.job_id = str(record.get("job_id") or "")
        attempt.cluster = str(record.get("cluster") or "")
        attempt.restart_count = _int(record.get("restart_count")) or 0
        attempt.nodes = _strings(record.get("nodes"))
        attempt.hostname = str(record.get("hostname") or "")
        attempt.world_size = _int(record.get("world_size")) or 1
        attempt.device = str(record.get("device") or "")
        versions = record.get("versions")
        if isinstance(versions, Mapping):
            attempt.versions = {str(name): str(version) for name, version in versions.items()}
        attempt.submitted_at = _float(record.get("submitted_at"))
        # Imports come before the first line.
        attempt.start = min(attempt.start, _float(record.get("started_at")) or attempt.start)
    elif kind == Kind.RESTORE:
        attempt.restored_step = _int(record.get("step")) or 0
    elif kind == Kind.FIRST_STEP:
        attempt.first_step = _int(record.get("step"))
        attempt.first_step_at = float(record["t"])
    elif kind == Kind.SAVE:
        attempt.saves += 1
        attempt.last_saved_step = _int(record.get("step"))
        attempt.save_s = max(attempt.save_s, _float(record.get("durable_s")) or 0.0)
    elif kind == Kind.SAVE_FAILED:
        attempt.save_failures += 1
    elif kind == Kind.SUBSTITUTION:
        attempt.substitutions += 1
    elif kind == Kind.SIGNAL:
        attempt.signals.append(str(record.get("name")))
    elif kind == Kind.HANG:
        attempt.hangs.append(dict(record))
    elif kind == Kind.FAULT:
        attempt.faults.append(dict(record))
    elif kind == Kind.DAMAGED:
        attempt.damaged.append(dict(record))
    elif kind == Kind.REQUEUE:
        attempt.requeue = dict(record)
    elif kind == Kind.END:
        attempt.ended = attempt.ended_itself = True
        attempt.cause = str(record.get("cause") or UNKNOWN_CAUSE)
        attempt.exit_code = _int(record.get("exit_code"))
        attempt.finished_at = _int(record.get("all_steps"))
        attempt.early = str(record.get("early") or "")
        attempt.num_worse = _int(record.get("num_worse")) or 0
    if kind in _WITH_STEP:
        attempt.last_step = max(attempt.last_step, _int(record.get("step")) or 0)
    if _has_seconds(record):
        seconds = {str(name): _float(value) for name, value in record["buckets"].items()}
        attempt.buckets = {name: value for name, value in seconds.items() if value is not None}


def _apply_supervisor(attempt: Attempt) -> None:
    note = attempt.supervisor
    if not note:
        return
    if not attempt.job_id:
        attempt.cluster = str(note.get("cluster") or "")
        attempt.restart_count = _int(note.get("restart_count")) or 0
    attempt.last_step = max(attempt.last_step, _int(note.get("step")) or 0)
    # In a container a rank may not be able to ask why, and leave it to the batch script outside.
    if not attempt.ended or attempt.cause == UNKNOWN_CAUSE:
        attempt.ended = True
        attempt.cause = str(note.get("cause") or UNKNOWN_CAUSE)
    if attempt.exit_code is None:
        attempt.exit_code = _int(note.get("exit_code"))


def _strings(value: object) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _int(value: object) -> int | None:
    number = _float(value)
    return None if number is None else int(number)


def _float(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None

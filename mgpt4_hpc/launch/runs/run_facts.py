"""What a run's folder says of itself, read quickly enough for hundreds of runs at a time."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.runs.cancel_request import cancel_requested
from mgpt4_hpc.launch.runs.job_ref import JobRef, copied_from, read_note, read_ref
from mgpt4_hpc.run_dir import RunDir, read_json
from mgpt4_hpc.run_reference import best_validation, find_reference
from mgpt4_hpc.telemetry.attempts import Attempt, Record, summarise
from mgpt4_hpc.telemetry.causes import Cause
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.heartbeat import Beat, read_heartbeat
from mgpt4_hpc.telemetry.ledger import summary_records
from mgpt4_hpc.text_files import text_of

_LEDGER = re.compile(r"(attempt|supervisor)-(\d{4,})\.jsonl")
_CHECKPOINT = re.compile(r"step-(\d{8,})")
_HEAD_BYTES = 8 * 1024
_TAIL_BYTES = 24 * 1024
_PROGRESS = b'"kind": "steps"'
# `write_config` puts one setting on a line. Parsing YAML costs 100 times as much.
_STEPS_LINE = re.compile(r"^  max_steps: (\d+)\b", re.MULTILINE)
_EARLY_STOP_LINE = re.compile(r"^  early_stop: (\d+)\b", re.MULTILINE)
_BATCH_LINE = re.compile(r"^  global_batch_size: (\d+)\b", re.MULTILINE)


@dataclass(frozen=True)
class RunFacts:
    """A run as its folder shows it.

    Attributes:
        run: its directory.
        stage: 1 or 2; 0 where run.json does not say.
        created: as run.json has it.
        max_steps: of its configuration, or the step that it has reached if that is beyond; None
            where it cannot be read.
        global_batch_size: of its configuration; None where it cannot be read.
        early_stop: of its configuration; 0 where it cannot be read.
        job: the newest job; None if it was never submitted, or is a copy's original's.
        job_is_lost: the note of the newest job is there, and is empty or cut.
        copied_from: the folder that has the job, if this one is a copy of it.
        attempts: summaries, oldest first. Counts of saves and substitutions are those of a
            ledger's beginning and end only; `history` reads them whole.
        beat: last sign of life.
        checkpoint_step: newest checkpoint.
        checkpoint_at: unix time of it.
        best_step, best_value: of the best validation until then (``best_validation``).
        failed: text of FAILED, None without it.
        resubmit: text of RESUBMIT_NEEDED, None without it.
        cancel: whether the user asked this job not to come back.
        loss: newest training loss.
        samples_per_s: newest rate.
    """

    run: RunDir
    stage: int = 0
    created: str = ""
    max_steps: int | None = None
    global_batch_size: int | None = None
    early_stop: int = 0
    job: JobRef | None = None
    job_is_lost: bool = False
    copied_from: str | None = None
    attempts: list[Attempt] = field(default_factory=list)
    beat: Beat | None = None
    checkpoint_step: int | None = None
    checkpoint_at: float | None = None
    best_step: int | None = None
    best_value: float | None = None
    failed: str | None = None
    resubmit: str | None = None
    cancel: bool = False
    loss: float | None = None
    samples_per_s: float | None = None

    @property
    def last(self) -> Attempt | None:
        """The newest attempt."""
        return self.attempts[-1] if self.attempts else None

    @property
    def finished(self) -> bool:
        """Whether no step is left by its present settings."""
        last = self.last
        if last is None or last.cause != Cause.FINISHED:
            return False
        if self.max_steps is None or last.finished_at is None:
            return True
        return self.max_steps <= last.finished_at or self.stops_early

    @property
    def stops_early(self) -> bool:
        """Whether ``train.early_stop`` holds where its newest attempt finished."""
        return self.last is not None and 0 < self.early_stop <= self.last.num_worse

    @property
    def step(self) -> int:
        """The last step known to be finished; before the first of an attempt, the checkpoint's."""
        last = self.last
        if last is None:
            return self.checkpoint_step or 0
        step = last.last_step or self.checkpoint_step or 0
        if self.beat is not None and self.beat.attempt == last.number:
            step = max(step, self.beat.step)
        return step

    @property
    def last_sign_at(self) -> float | None:
        """Unix time of the newest thing that the run wrote."""
        known = [self.beat.time] if self.beat is not None else []
        known += [self.last.end] if self.last is not None else []
        known += [self.checkpoint_at] if self.checkpoint_at is not None else []
        return max(known, default=None)


def read_facts(run: RunDir) -> RunFacts:
    """Read one run's folder. A file that is missing or torn leaves its fact unknown."""
    identity = _json(run.identity_file)
    ledgers = _read_ledgers(run.ledger)
    attempts = summarise([(number, *both) for number, both in sorted(ledgers.items())])
    noted = read_note(run)
    original = copied_from(run, noted)
    job = None
    if original is None:
        job = _job(noted, [records for records, _ in ledgers.values()])
    newest = _newest_values([records for records, _ in ledgers.values()])
    max_steps, batch, early_stop = _sizes(run)
    step, saved_at = _newest_checkpoint(run.checkpoints)
    best_step, best_value = best_validation(run, step)
    facts = RunFacts(
        run=run,
        stage=identity.get("stage") or 0,
        created=str(identity.get("created", "")),
        max_steps=max_steps,
        global_batch_size=batch,
        early_stop=early_stop,
        job=job,
        job_is_lost=not noted and (run.slurm / "job.json").exists(),
        copied_from=original,
        attempts=attempts,
        beat=read_heartbeat(run.heartbeat),
        checkpoint_step=step,
        checkpoint_at=saved_at,
        best_step=best_step,
        best_value=best_value,
        failed=text_of(run.failed),
        resubmit=text_of(run.resubmit_needed),
        cancel=cancel_requested(run, job.job_id if job else None, pauses_s=()),
        loss=_number(newest.get("loss")),
        samples_per_s=_number(newest.get("samples_per_s")),
    )
    # A last step that the user gives may be one that the run has passed.
    passed = max_steps is not None and facts.step > max_steps
    return replace(facts, max_steps=facts.step) if passed else facts


def run_it_follows(run: RunDir) -> RunDir | None:
    """The run that this one starts from; None if it starts from no run's."""
    try:
        projector = read_config(run.config_file).config.model.projector
    except MgptError:
        return None
    first = RunDir(Path(projector or ""))
    return first if projector is not None and first.identity_file.is_file() else None


def origin_of(run: RunDir) -> str:
    """The run whose state or weights this one began with, in words; "" if there is none."""
    if before := run.identity().get("branched_from"):
        return f"continues {before[-1].get('name')}@{before[-1].get('step')}"
    try:
        projector = read_config(run.config_file).config.model.projector
        if projector is None:
            return ""
        start = find_reference(projector, run.path.parent)
    except MgptError:
        return ""  # a file, or a run that is gone
    at = f"@{start.step}" if start.step is not None else ""
    return f"starts from the weights of {start.run.name}{at}" if start.run is not None else ""


Records = list[Record]


def _read_ledgers(folder: Path) -> dict[int, tuple[Records, Records]]:
    """Per attempt its own records and its supervisor's, as far as an overview needs them."""
    ledgers: dict[int, tuple[Records, Records]] = {}
    try:
        names = sorted(os.listdir(folder))  # noqa: PTH208 - names only; a Path each costs time
    except OSError:
        return {}
    for name in names:
        match = _LEDGER.fullmatch(name)
        if match:
            own_records = ledgers.setdefault(int(match[2]), ([], []))
            own_records[0 if match[1] == "attempt" else 1].extend(_edge_records(folder / name))
    return dict(sorted(ledgers.items()))


def _edge_records(path: Path) -> Records:
    """The first and the last records of a ledger; of a long one the middle is not read."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size <= _HEAD_BYTES + _TAIL_BYTES:
                return summary_records(file.read().split(b"\n"))
            head = file.read(_HEAD_BYTES).split(b"\n")[:-1]
            file.seek(size - _TAIL_BYTES)
            tail = file.read().split(b"\n")[1:]
            if not any(_PROGRESS in line for line in tail):
                # Hundreds of bad samples in a row: then the whole file must be read.
                file.seek(0)
                return summary_records(file.read().split(b"\n"))
            return summary_records(head + tail)
    except OSError:
        return []


def _job(job_file: Mapping[str, Any], ledgers: list[Records]) -> JobRef | None:
    """The job that was submitted last, or one that was started by hand since."""
    start: Mapping[str, Any] = {}
    if ledgers:
        start = next((r for r in ledgers[-1] if r.get("kind") == Kind.START), {})
    started_id, started_at = str(start.get("job_id") or ""), _number(start.get("t")) or 0.0
    host = str(start.get("host") or start.get("hostname") or "")
    job_id = str(job_file.get("job_id") or "")
    since = _number(job_file.get("submitted")) or 0.0
    by_hand = started_id and started_id != job_id and started_at > since
    if job_id and not by_hand:
        known = str(job_file.get("host") or "") or (host if started_id == job_id else "")
        return read_ref(job_file, since, known)
    if not started_id:
        return None
    return JobRef(str(start.get("executor") or "slurm"), started_id, started_at, host)


def _newest_values(ledgers: list[Records]) -> Mapping[str, Any]:
    for records in reversed(ledgers):
        for record in reversed(records):
            if record.get("kind") == Kind.STEPS and record.get("loss") is not None:
                return record
    return {}


def _sizes(run: RunDir) -> tuple[int | None, int | None, int]:
    """max_steps, global_batch_size and early_stop of its configuration."""
    text = text_of(run.config_file) or ""
    steps, batch = _STEPS_LINE.search(text), _BATCH_LINE.search(text)
    early_stop = _EARLY_STOP_LINE.search(text)  # older runs do not have it
    if steps and batch:
        return int(steps[1]), int(batch[1]), int(early_stop[1]) if early_stop else 0
    try:
        train = read_config(run.config_file).config.train
    except MgptError:
        return None, None, 0
    return train.max_steps, train.global_batch_size, train.early_stop


def _newest_checkpoint(folder: Path) -> tuple[int | None, float | None]:
    try:
        names = os.listdir(folder)  # noqa: PTH208 - names only
    except OSError:
        return None, None
    steps = [int(match[1]) for match in map(_CHECKPOINT.fullmatch, names) if match]
    if not steps:
        return None, None
    newest = folder / f"step-{max(steps):08d}"
    try:
        return max(steps), (newest / "manifest.json").stat().st_mtime
    except OSError:
        return max(steps), None


def _json(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, (int, float)) else None

"""Deleting run directories: what would go, what speaks against it, and doing it.

Nothing outside the folder is ever touched: a link inside it is removed and not followed, and a run
that is itself a link is refused.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import stat
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mgpt4_hpc.errors import MgptError, RunLocked, SlurmRejected, SlurmUnreachable
from mgpt4_hpc.formatting import shell_word
from mgpt4_hpc.launch.runs.run_facts import read_facts
from mgpt4_hpc.launch.runs.run_state import RunState
from mgpt4_hpc.launch.runs.status import RunOverview, look_at
from mgpt4_hpc.launch.runs.submission_lock import submitting
from mgpt4_hpc.launch.slurm.scheduler import scheduler
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.text_files import text_of

ENDING_S = 600.0
"""So long after a run's last step its job may still be ending, with work in the folder."""

# `write_config` puts one setting on a line.
_START = re.compile(r"^  projector: (.+?)(?:\s+#.*)?$", re.MULTILINE)


@dataclass(frozen=True)
class Removal:
    """One run that may be removed.

    Attributes:
        run: the run.
        text: what it did, as ``mgpt4 status`` says it.
        step, max_steps: how far it came.
        checkpoints: how many would go.
        files: files and links in the folder.
        bytes: that they take on disk; of a file with several names a share.
        needed_by: names of unfinished runs that start from its checkpoint.
        run_id: identity of the run that was looked at.
    """

    run: RunDir
    text: str
    step: int
    max_steps: int | None
    checkpoints: int
    files: int
    bytes: int
    needed_by: list[str] = field(default_factory=list)
    run_id: str = ""


def plan_removal(
    runs: Sequence[RunDir], rows: Sequence[RunOverview], others: Iterable[RunDir]
) -> list[Removal]:
    """What would go if these runs were removed; nothing is changed.

    Args:
        runs: to be removed.
        rows: what each of them is doing.
        others: further runs, which may start from the checkpoints of these.

    Raises:
        RunLocked: if one of them runs or waits, is a link, or holds something that must stay. All
            of them are named.
        NoSuchRun: if one is no run directory.
        SlurmUnreachable: if one has just finished and Slurm does not report whether its job has.
    """
    _assert_over(runs, rows)
    gone = {run.path.resolve() for run in runs}
    waiting = [
        (run.name, started)
        for run in others
        if run.path.resolve() not in gone
        and (started := _starts_from(run)) is not None
        and not read_facts(run).finished
    ]
    return [_removal(run, row, waiting) for run, row in zip(runs, rows, strict=True)]


def _assert_over(runs: Sequence[RunDir], rows: Sequence[RunOverview]) -> None:
    refused: list[str] = []
    ending = _jobs_that_end(runs, rows)
    for run, row in zip(runs, rows, strict=True):
        run.identity()  # the proof that this folder is a run
        why = _refusal(run, row)
        if not why and row.job_id in ending:
            why = f"its job {row.job_id} is still ending"
        if why:
            refused.append(f"{run.name}: {why}")
    if refused:
        live = [row for row in rows if row.state.is_live]
        names = " ".join(shell_word(row.name) for row in live)
        where = next((row.there for row in live if row.there), "")
        raise RunLocked(
            "nothing was removed: " + "; ".join(refused),
            fix=f"stop it first: mgpt4 cancel {names}{where}; then remove it" if live else "",
        )


def _jobs_that_end(runs: Sequence[RunDir], rows: Sequence[RunOverview]) -> set[str]:
    """Jobs that Slurm still has of runs whose folders say that they finished a moment ago."""
    since = time.time() - ENDING_S
    asked = [
        row.job_id
        for run, row in zip(runs, rows, strict=True)
        if row.state is RunState.FINISHED
        and row.executor == "slurm"
        and row.job_id is not None
        and (last := read_facts(run).last) is not None
        and last.end > since
    ]
    try:
        return {job_id for job_id, job in scheduler().queued(asked).items() if job.is_active}
    except SlurmRejected as error:  # a squeue that crashes is no better than one that is silent
        raise SlurmUnreachable(error.what, why=error.why, fix=error.fix) from error


def remove_run(plan: Removal) -> None:
    """Delete a run directory, if it still is what was planned to go.

    The user may think about the answer for hours, so the run's state is checked again, under the
    lock that a submission takes. ``run.json`` goes last, so that a removal that was interrupted can
    be repeated.

    Raises:
        RunLocked: if another command submits the run in this moment, or has; or the folder holds
            another run.
        SlurmUnreachable: if that cannot be known.
        MgptError: if something cannot be deleted.
    """
    run = plan.run
    try:
        if run.slurm.is_dir():
            with submitting(run):
                _assert_still(plan)
                _delete_contents(run)
        else:
            _delete_contents(run)  # an earlier removal came this far
        run.identity_file.unlink(missing_ok=True)
        run.path.rmdir()
    except OSError as error:
        raise MgptError(
            f"{run.path} could not be removed whole: {error.strerror}: {error.filename}",
            fix=f"mend that and repeat: mgpt4 rm {shlex.quote(str(run.path))}",
        ) from error


def _assert_still(plan: Removal) -> None:
    run = plan.run
    if run.run_id != plan.run_id:
        raise RunLocked(
            f"{run.path} holds another run than the one that was to be removed",
            fix=f"look at it first: mgpt4 status {shlex.quote(str(run.path))}",
        )
    seen = look_at([run])
    if seen.unreachable is not None:
        raise seen.unreachable
    _assert_over([run], seen.rows)


def _delete_contents(run: RunDir) -> None:
    for entry in os.scandir(run.path):
        if entry.name == run.identity_file.name:
            continue
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)  # noqa: PTH108 - a link itself, never what it points to


def _refusal(run: RunDir, row: RunOverview) -> str:
    if row.state.is_live:
        doing = "is running" if row.state is RunState.RUNNING else "waits in the queue"
        detail = "" if row.text == "running" else f" ({row.text})"
        return f"it {doing}{detail}"
    if row.state is RunState.UNKNOWN:
        return f"it is not known to be over ({row.text})"
    if run.path.is_symlink():
        return f"it is a link to {run.path.resolve()}: name that folder itself"
    inside = [place for place in (Path.cwd(), Path.home()) if _is_in(place, run.path)]
    if inside:
        return f"{inside[0]} lies in it"
    if run.path.is_mount():
        return "it is a mount point"
    return ""


def _is_in(place: Path, folder: Path) -> bool:
    return place.resolve().is_relative_to(folder.resolve())


def _removal(run: RunDir, row: RunOverview, waiting: Sequence[tuple[str, Path]]) -> Removal:
    files, size = _disk_use(run.path)
    return Removal(
        run=run,
        text=row.text,
        step=row.step,
        max_steps=row.max_steps,
        checkpoints=sum(1 for _ in run.checkpoints.glob("step-*")),
        files=files,
        bytes=size,
        needed_by=[name for name, start in waiting if _is_in(start, run.path)],
        run_id=run.run_id,
    )


def _starts_from(run: RunDir) -> Path | None:
    """The folder or file that a run's projector comes from, if that is set."""
    match = _START.search(text_of(run.config_file) or "")
    if match is None or match[1] == "null":
        return None
    return Path(match[1].strip("'\""))


def _disk_use(folder: Path) -> tuple[int, int]:
    """Number of files under ``folder``, and the bytes that deleting them would free."""
    files = size = 0
    for root, _, names in os.walk(folder, followlinks=False):
        for name in names:
            try:
                state = os.lstat(Path(root) / name)
            except OSError:
                continue  # gone in this moment
            files += 1
            if stat.S_ISREG(state.st_mode):
                size += state.st_blocks * 512 // max(state.st_nlink, 1)
    return files, size

"""Whether a folder for runs can be relied on: every file operation that a run needs, tried there.

What only another node can show (does it see the same folder?) is checked by `mgpt4 drill`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from mgpt4_hpc.formatting import duration, size_text
from mgpt4_hpc.launch.runs.shared_storage import (
    IN_MEMORY,
    file_system,
    nearest_existing,
    not_shared,
)
from mgpt4_hpc.launch.site_check.finding import Finding, Findings

LEAST_BYTES = 2 * 2**30
"""Three checkpoints of the largest projector (Llama-2: 277 MB, and AdamW's two moments)."""
ENOUGH_BYTES = 20 * 2**30
LEAST_INODES = 1_000
ENOUGH_INODES = 100_000
SLOW_FSYNC_S = 1.0
CLOCK_SKEW_S = 5.0
_SCRIPT_TIMEOUT_S = 30.0


def folder_findings(runs_dir: Path, *, shared: bool) -> list[Finding]:
    """Try everything that a run does with its files, in a folder of its own that is removed again.

    Args:
        runs_dir: folder of the run directories; where it does not exist yet, the place that it
            would be made in is tried.
        shared: whether other machines must see it, as under Slurm.
    """
    findings = Findings("runs folder")
    place = nearest_existing(runs_dir)
    if place != runs_dir:
        findings.note(f"{runs_dir} does not exist yet; tried in {place}")
    if "%" in str(runs_dir):
        findings.fault(f"{runs_dir} has a % in its path, which Slurm would expand", "rename it")
    _mode_findings(place, findings)
    _type_finding(place, findings, shared=shared)
    _space_findings(place, findings)
    try:
        work = Path(tempfile.mkdtemp(prefix=".mgpt4-doctor-", dir=place))
    except OSError as error:
        findings.fault(
            f"{place} cannot be written: {error.strerror}",
            "give --runs-dir a writable folder on storage that all nodes share",
        )
        return findings
    try:
        for what, probe in _PROBES:
            _try(what, probe, work, findings)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return findings


def _try(
    what: str, probe: Callable[[Path, Findings], None], work: Path, findings: Findings
) -> None:
    try:
        probe(work, findings)
    except OSError as error:
        findings.fault(
            f"{what} fails: {error.strerror or error}",
            "use another file system; a checkpoint would not be safe here",
        )


def _mode_findings(place: Path, findings: Findings) -> None:
    status = place.stat()
    mode = stat.S_IMODE(status.st_mode)
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        findings.fault(
            f"everybody may write {place} (mode {mode:04o}), and so put his own in a run's place; "
            "what lies there will be run as you",
            f"chmod o-w {place}",
        )
    elif mode & stat.S_IWGRP and not mode & stat.S_ISVTX:
        findings.note(
            f"the group may write {place} (mode {mode:04o}): its members could replace your runs",
            f"chmod +t {place}",
        )
    else:
        findings.ok(f"only its owner may change {place} (mode {mode:04o})")


def _type_finding(place: Path, findings: Findings, *, shared: bool) -> None:
    kind = file_system(place)
    reason = not_shared(place)
    elsewhere = "give --runs-dir a folder on storage that all nodes share"
    if not shared or not kind:
        findings.ok(f"file system {kind or 'of an unknown type'}")
    elif kind in IN_MEMORY:
        findings.fault(
            f"{place} {reason}: no other node sees it, and a reboot empties it", elsewhere
        )
    elif reason:
        findings.warn(
            f"{place} {reason}, which other nodes do not see",
            f"{elsewhere}, or let `mgpt4 drill` show that they do",
        )
    else:
        findings.ok(f"file system {kind}, which nodes can share")


def _space_findings(place: Path, findings: Findings) -> None:
    space = os.statvfs(place)
    free = space.f_bavail * space.f_frsize
    free_text = f"{size_text(free)} free"
    fix = "free some, or give another --runs-dir; a quota may allow less than this shows"
    if free < LEAST_BYTES:
        findings.fault(f"{free_text}: too little for the checkpoints of one run", fix)
    elif free < ENOUGH_BYTES:
        findings.warn(f"{free_text}: enough for a few runs", fix)
    else:
        findings.ok(free_text)
    # Some file systems make inodes as they go, and report none at all.
    if not space.f_files:
        return
    files_text = f"{space.f_favail:,} files may still be made"
    if space.f_favail < LEAST_INODES:
        findings.fault(f"{files_text}: too few for a run and its code", fix)
    elif space.f_favail < ENOUGH_INODES:
        findings.warn(files_text, fix)
    else:
        findings.ok(files_text)


# -- probes: each gets an empty-enough folder, and raises OSError if the file system cannot ------


def _probe_rename(work: Path, findings: Findings) -> None:
    """Files are replaced by renaming, and a folder's rename makes a checkpoint official."""
    old, new = work / "file", work / "file.new"
    old.write_bytes(b"old")
    new.write_bytes(b"new")
    new.replace(old)
    if old.read_bytes() != b"new" or new.exists():
        findings.fault("a rename over a file left the old one", "use another file system")
        return
    tmp, final = work / ".tmp", work / "step"
    tmp.mkdir()
    (tmp / "part").write_bytes(b"1")
    tmp.rename(final)
    again = work / ".tmp"
    again.mkdir()
    (again / "part").write_bytes(b"2")
    try:
        again.rename(final)
    except OSError:
        pass
    if (final / "part").read_bytes() != b"1":
        findings.fault(
            "a folder was renamed over another that was not empty: a checkpoint could be lost",
            "use another file system",
        )
        return
    findings.ok("renames replace files whole, and never a folder with something in it")


def _probe_claim(work: Path, findings: Findings) -> None:
    """An attempt claims its number with O_EXCL: two must not both get it."""
    claim = work / "0001"
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    os.close(os.open(claim, flags, 0o600))
    try:
        os.close(os.open(claim, flags, 0o600))
    except FileExistsError:
        findings.ok("a file is made by one process alone (O_EXCL)")
        return
    findings.fault(
        "a file was made twice with O_EXCL: two jobs could both believe that they own a run",
        "use another file system",
    )


def _probe_fsync(work: Path, findings: Findings) -> None:
    """A checkpoint counts once its files, its folder and the parent are on disk."""
    path = work / "synced"
    began = time.monotonic()
    with path.open("wb") as file:
        file.write(os.urandom(2**20))
        file.flush()
        os.fsync(file.fileno())
    handle = os.open(work, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
    took_s = time.monotonic() - began
    if took_s > SLOW_FSYNC_S:
        findings.warn(
            f"bringing one MiB to disk took {took_s:.1f} s: a save at a preemption may be too late",
            "try again at another hour, or use faster storage",
        )
    else:
        findings.ok(
            f"files and folders reach the disk when asked to (fsync, {1000 * took_s:.0f} ms)"
        )


def _probe_lock(work: Path, findings: Findings) -> None:
    with (work / "lock").open("w") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            findings.note(f"locks do not work here ({error.strerror}); mgpt4 does not rely on them")
            return
    findings.ok("locks work; mgpt4 does not rely on them")


def _probe_exec(work: Path, findings: Findings) -> None:
    """Each rank is started through a small script inside the run directory."""
    script = work / "script"
    script.write_text("#!/bin/sh\nexit 7\n")
    script.chmod(0o700)
    try:
        code = subprocess.run([str(script)], timeout=_SCRIPT_TIMEOUT_S, check=False).returncode
    except PermissionError:
        code = -1
    except subprocess.TimeoutExpired:
        findings.fault(
            f"a script did not end in {_SCRIPT_TIMEOUT_S:.0f} s", "use another file system"
        )
        return
    if code != 7:
        findings.fault(
            "scripts cannot be run from there (mounted noexec?), and a run starts with one",
            "give another --runs-dir",
        )
    else:
        findings.ok("scripts can be run from there")


def _probe_map(work: Path, findings: Findings) -> None:
    """Safetensors files are read through a memory map."""
    path = work / "mapped"
    path.write_bytes(b"mapped")
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                good = mapped[:] == b"mapped"
        except (OSError, ValueError) as error:
            findings.fault(
                f"files cannot be mapped into memory: {error}", "use another file system"
            )
            return
    if not good:
        findings.fault("a mapped file reads differently", "use another file system")


def _probe_clock(work: Path, findings: Findings) -> None:
    path = work / "clock"
    before = time.time()
    path.write_bytes(b"")
    skew_s = path.stat().st_mtime - before
    if abs(skew_s) > CLOCK_SKEW_S:
        findings.warn(
            f"the file server's clock is {duration(abs(skew_s))} "
            f"{'ahead of' if skew_s > 0 else 'behind'} this machine's",
            "ask the support; ages in `mgpt4 status` are wrong by as much",
        )


_PROBES: tuple[tuple[str, Callable[[Path, Findings], None]], ...] = (
    ("renaming", _probe_rename),
    ("claiming a file", _probe_claim),
    ("fsync", _probe_fsync),
    ("locking", _probe_lock),
    ("running a script", _probe_exec),
    ("mapping a file", _probe_map),
    ("reading the clock", _probe_clock),
)

"""``mgpt4 data`` killed with -9 at random points: no half output, and the next call works.

Forked and not started anew, so that the kills fall into the work and not into `import`.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import ijson  # noqa: F401 - imported by the commands, here once for all forks
import pyarrow.parquet  # noqa: F401
import pytest
import webdataset  # noqa: F401

import mgpt4_hpc.data.sources.contact_sheet
import mgpt4_hpc.data.sources.convert
import mgpt4_hpc.data.sources.pack
import mgpt4_hpc.data.sources.stats  # noqa: F401
from mgpt4_hpc.cli.main import main
from tests.unit.data.worlds import jpeg, write_shards

KILLS = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A caption list, a cc_sbu_align folder and shards: each some tenths of a second of work."""
    root = tmp_path_factory.mktemp("killed")
    rows = [{"url": f"http://a.org/{n}.jpg", "caption": f"a dog number {n}"} for n in range(30_000)]
    (root / "list.json").write_text(json.dumps(rows))
    (root / "align" / "image").mkdir(parents=True)
    for number in range(120):
        (root / "align" / "image" / f"{number}.jpg").write_bytes(jpeg(number, (64, 64)))
    pairs = [{"image_id": str(n), "caption": "a dog"} for n in range(120)]
    (root / "align" / "filter_cap.json").write_text(json.dumps({"annotations": pairs}))
    write_shards(root / "shards", 400, 50)
    return root


def commands(world: Path, out: Path) -> dict[str, list[object]]:
    return {
        "convert": ["convert", world / "list.json", "--out", out],
        "pack": ["pack", world / "align", "--out", out],
        "index": ["index", world / "shards", "--out", out, "--name", "a", "--decode"],
        "stats": ["stats", world / "shards", "--contact-sheet", out],
        "check": ["check", world / "shards", "--decode"],
    }


def begin(arguments: list[object], log: Path) -> int:
    """Fork a process that runs one command; its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        sys.stdout, sys.stderr = log.open("w"), log.with_suffix(".err").open("w")
        main(["data", *map(str, arguments), "--json"])
    except SystemExit as ended:
        sys.stdout.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    finally:
        os._exit(99)


def run_whole(arguments: list[object], log: Path) -> float:
    began = time.monotonic()
    _, status = os.waitpid(begin(arguments, log), 0)
    assert os.waitstatus_to_exitcode(status) == 0, log.with_suffix(".err").read_text()
    return time.monotonic() - began


def content(path: Path) -> dict[str, str]:
    """Hash of every file, hidden ones too."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return {
        str(file.relative_to(path)): hashlib.sha256(_settled(file)).hexdigest() for file in files
    }


def _settled(file: Path) -> bytes:
    """A report names its own folder, which differs between the runs of this test."""
    return b"" if file.name == "convert.json" else file.read_bytes()


@pytest.mark.parametrize("name", ["convert", "pack", "index", "stats", "check"])
def test_killed_at_random_points(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    log, ending = tmp_path / "log", ".png" if name == "stats" else ""
    folder = tmp_path / "out"
    folder.mkdir()
    whole = tmp_path / f"whole{ending}"
    run_whole(commands(world, whole)[name], log)  # imports what the forks then have
    seconds = run_whole(commands(world, tmp_path / f"again{ending}")[name], log)
    expected = content(whole) if whole.exists() else {}

    out = folder / f"result{ending}"
    draw, killed = random.Random(name), 0
    for attempt in itertools.count():
        if killed and attempt >= KILLS:
            break
        assert attempt < 10 * KILLS, "each run was quicker than its kill"
        pid = begin(commands(world, out)[name], log)
        time.sleep(draw.uniform(0.0, 1.2) * seconds)
        os.kill(pid, signal.SIGKILL)
        killed += os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
        visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
        if visible:  # it was quicker than the kill, or the kill came behind its last rename
            assert visible == [out]
            assert content(out) == expected
            _remove(out)
    run_whole(commands(world, out)[name], log)
    assert json.loads(log.read_text())
    if expected:
        assert content(out) == expected
        assert [path.name for path in folder.iterdir()] == [out.name]  # nothing hidden is left
    assert list((tmp_path / "tmp").iterdir()) == []


def _remove(out: Path) -> None:
    if out.is_file():
        out.unlink()
        return
    for file in out.iterdir():
        file.unlink()
    out.rmdir()

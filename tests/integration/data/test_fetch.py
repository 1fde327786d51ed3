"""Real fetches by real processes, killed and refused, from a stand-in of the hub."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub_server import COMMIT, REPO, HubServer, hub_server
from tests.support.runs import REPO as CHECKOUT
from tests.support.runs import wait_until
from tests.support.shown import assert_schema
from tests.unit.data.worlds import members, tar_bytes

NUM_TARS = 6


@pytest.fixture
def hub() -> Iterator[HubServer]:
    rng = random.Random(0)
    files = {
        f"train/{number:05d}.tar": tar_bytes(members([number])) + rng.randbytes(400_000)
        for number in range(NUM_TARS)
    }
    files |= {"README.md": b"# Shards\n", "val/00000.tar": tar_bytes(members([9]))}
    with hub_server(files) as server:
        yield server


def start(hub: HubServer, *words: object, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", "data", "fetch", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=CHECKOUT,
        env={**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", **environ},
    )


def run(hub: HubServer, *words: object) -> tuple[int, dict, str]:
    out, err = (process := start(hub, *words, "--json")).communicate(timeout=300)
    assert "Traceback" not in err, err
    return process.returncode, json.loads(out) if out else {}, err


def whole(hub: HubServer, out: Path, pattern: str = "*") -> list[str]:
    """Names of the files that are there; each is what the hub has."""
    found = [path for path in out.glob(f"**/{pattern}") if path.is_file()]
    names = sorted(str(p.relative_to(out)) for p in found if ".fetch" not in p.parts)
    assert all((out / name).read_bytes() == hub.files[name] for name in names)
    return names


def test_five_kills_refusals_and_broken_connections(tmp_path: Path) -> None:
    rng = random.Random(1)
    names = [f"train/{number:05d}.tar" for number in range(2)]
    out, piece = tmp_path / "out", 10 * 2**20
    words = (f"hf:{REPO}", "--out", out, "--files", "train/*.tar")
    with hub_server({name: rng.randbytes(3 * piece) for name in names}) as hub:
        hub.slow_s = 0.002
        for _ in range(5):
            hub.refuse, hub.break_off = 2, 2
            sent = hub.sent
            process = start(hub, *words)
            wait_until(
                lambda sent=sent, process=process: (
                    hub.sent > sent + piece or process.poll() is not None
                ),
                120,
                "bytes to come",
            )
            process.kill()
            process.wait()
            whole(hub, out)  # never a half one under its own name
        hub.slow_s = 0
        code, report, _ = run(hub, *words)
        assert code == 0
        assert whole(hub, out) == names
        assert (report["num_files"], report["revision"], report["missing"]) == (2, COMMIT, {})
        assert_schema("data fetch", report)
        # What had come was not fetched again, but for the pieces that a kill cut off.
        assert any(hub.ranges)
        assert hub.sent < (2 * 3 + 4) * piece
        assert not list((out / ".fetch" / "partial").glob("[!.]*"))
        again = hub.asked.copy()
        code, report, _ = run(hub, *words)
        assert (code, report["fetched"]) == (0, [])
        assert not {path for path in hub.asked - again if "/resolve/" in path}


def test_two_processes_share_the_files_and_one_takes_over_from_a_killed_one(
    hub: HubServer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    hub.slow_s = 0.05
    words = [f"hf:{REPO}", "--out", out, "--files", "train/*.tar", "--json"]
    dies = start(hub, *words)
    wait_until(lambda: hub.sent > 200_000, 120, "bytes to come")
    others = [start(hub, *words) for _ in range(2)]
    wait_until(lambda: hub.sent > 800_000, 120, "bytes to come")
    dies.kill()
    dies.communicate()
    reports = [json.loads(process.communicate(timeout=300)[0]) for process in others]
    assert [report["num_files"] for report in reports] == [6, 6]
    assert len(whole(hub, out)) == NUM_TARS
    fetched = [name for report in reports for name in report["fetched"]]
    assert len(fetched) == len(set(fetched))


def test_a_changed_and_a_refused_file_are_named_and_the_others_whole(
    hub: HubServer, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    hub.swapped["train/00001.tar"] = hub.files["train/00000.tar"]  # of the same length
    hub.swapped["train/00002.tar"] = hub.files["train/00002.tar"][:1000]
    hub.status["train/00003.tar"] = 403
    code, report, err = run(hub, f"hf:{REPO}", "--out", out)
    assert code == 1
    assert sorted(report["missing"]) == [f"train/{number:05d}.tar" for number in (1, 2, 3)]
    assert "hash" in report["missing"]["train/00001.tar"]
    assert "403" in report["missing"]["train/00003.tar"]
    assert "3 of 8 files could not be fetched" in err
    assert len(whole(hub, out)) == 5
    hub.swapped.clear()
    hub.status.clear()
    (out / "README.md").write_bytes(b"# shards\n")  # damaged since, of the same length
    code, report, _ = run(hub, f"hf:{REPO}", "--out", out)
    assert code == 0
    assert len(report["fetched"]) == 4
    assert len(whole(hub, out)) == 8


def test_a_full_disk_keeps_what_is_whole(hub: HubServer, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", disk], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("only root can mount a small disk")
    try:
        words = (f"hf:{REPO}", "--out", disk / "out", "--files", "train/*.tar")
        code, _, err = run(hub, *words)
        assert code == 1
        assert "free" in err  # told before anything is fetched
        assert not hub.sent
        hub.slow_s = 0.1
        process = start(hub, *words[:3], "--files", "train/0000[0-2].tar", "--json")
        wait_until(lambda: hub.sent > 300_000, 120, "bytes to come")
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(600_000))  # somebody else fills the disk meanwhile
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1
        assert "No space left" in " ".join(json.loads(out)["missing"].values())
        assert "Traceback" not in err
        whole(hub, disk / "out")
        hub.slow_s = 0
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=9m", disk], check=True)
        code, report, _ = run(hub, *words)
        assert (code, report["num_files"]) == (0, NUM_TARS)
        assert len(whole(hub, disk / "out")) == NUM_TARS
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_plain_list_of_urls(hub: HubServer, tmp_path: Path) -> None:
    urls = [f"{hub.url}/plain/train/{number:05d}.tar" for number in range(3)]
    listing = tmp_path / "urls.txt"
    listing.write_bytes(b"\xef\xbb\xbf# mine\r\n" + "\r\n".join(urls).encode())
    out = tmp_path / "out"
    hub.slow_s = 0.05
    process = start(hub, listing, "--out", out)
    wait_until(lambda: hub.sent > 300_000, 120, "bytes to come")
    process.kill()
    process.wait()
    hub.slow_s = 0
    # What was begun is now another file on the server: the rest of it must not be joined to it.
    hub.files["train/00001.tar"] = hub.files["train/00001.tar"][::-1]
    code, report, _ = run(hub, listing, "--out", out)
    assert code == 0
    assert sorted(report["unverified"]) == [f"{number:05d}.tar" for number in range(3)]
    for number in range(3):
        data = (out / f"{number:05d}.tar").read_bytes()
        assert data == hub.files[f"train/{number:05d}.tar"]


def test_parts_and_what_is_no_source(hub: HubServer, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (f"hf:{REPO}", "--out", out, "--files", "train/*.tar")
    for part in ("1/4", "2/4", "3/4", "4/4"):
        assert run(hub, *words, "--part", part)[0] == 0
    assert len(whole(hub, out)) == NUM_TARS
    for bad, told in (
        ((f"hf:{REPO}", "--files", "tran/*.tar"), "it has train/00000.tar, train/00001.tar"),
        (("hf:owner/other",), "HF_TOKEN"),
        (("hf:owner",), "OWNER/NAME"),
        ((tmp_path / "none.txt",), "cannot be read"),
    ):
        code, _, err = run(hub, *bad, "--out", tmp_path / "new")
        assert code == 1
        assert told in err
    code, _, err = run(hub, f"hf:{REPO}", "--out", out, "--revision", COMMIT[:-1] + "1")
    assert code == 1

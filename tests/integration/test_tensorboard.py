"""A real TensorBoard over real event files, read back through its HTTP API."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.launch.side_jobs.tensorboard import OPENING, link_runs
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry import tags
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.train.recorder import FirstRankRecorder
from tests.cli.synthetic import make_run
from tests.support import browser
from tests.support.runs import REPO, patience, wait_until
from tests.support.shown import assert_schema

HOSTILE = "na me,x:y $(reboot)"


def draw(run: RunDir) -> None:
    """Three attempts of twenty steps; each is killed five steps past what it saved."""
    for attempt in (1, 2, 3):
        restored = 15 * (attempt - 1)
        recorder = FirstRankRecorder(run, attempt)
        recorder.event(
            Kind.START, nodes=[f"node{attempt}"], world_size=2, job_id="7", executor="slurm"
        )
        recorder.open_curves(restored)
        for step in range(restored + 1, restored + 21):
            recorder.beat(step)
            recorder.logged(step, {tags.TRAIN_LOSS: step + attempt / 10}, {}, "")
        recorder.event(Kind.END, cause="finished" if attempt == 3 else "preempted")
        recorder.close()


class Server:
    """``mgpt4 tensorboard`` as a user starts it."""

    def __init__(self, runs_dir: Path, tmp: Path, *wrapper: str) -> None:
        self.tmp = tmp
        tmp.mkdir()
        self.process = subprocess.Popen(
            [*wrapper, sys.executable, "-m", "mgpt4_hpc.cli.main", "tensorboard", "--json"],
            env={**os.environ, "MGPT4_RUNS_DIR": str(runs_dir), "TMPDIR": str(tmp)},
            cwd=REPO,
            stdout=subprocess.PIPE,
            text=True,
            # A nohup around the tests would be one around the server too.
            preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        )
        assert self.process.stdout is not None
        text = ""
        for line in self.process.stdout:
            text += line
            if line == "}\n":
                break
        self.told = json.loads(text)

    def get(self, path: str, posted: dict[str, Any] | None = None) -> Any:
        request = urllib.request.Request(
            self.told["url"].replace("localhost", "127.0.0.1") + "data/" + path,
            data=None if posted is None else json.dumps(posted).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request) as answer:
            return json.load(answer)

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(60 * patience())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("tensorboard")
    draw(make_run(root / "runs", "two", train__lr=0.5))
    make_run(root / "runs", "one").path.rename(root / "runs" / HOSTILE)
    draw(RunDir(root / "runs" / HOSTILE))
    started = Server(root / "runs", root / "tmp")

    def loaded() -> bool:
        shown = started.get("plugin/scalars/tags")
        return {name for name, found in shown.items() if "train/loss" in found} == {HOSTILE, "two"}

    wait_until(loaded, 30, "both runs loaded under their names")
    yield started
    if started.process.poll() is None:
        started.end(signal.SIGTERM)


def test_each_step_is_drawn_once(server: Server) -> None:
    points = server.get("plugin/scalars/scalars?run=two&tag=train/loss")
    assert [step for _, step, _ in points] == list(range(1, 51))
    by_attempt = [round((value - step) * 10) for _, step, value in points]
    assert by_attempt == [1] * 15 + [2] * 15 + [3] * 20


@pytest.mark.skipif(not browser.is_installed(), reason="needs chromium and chromedriver")
def test_its_link_opens_on_the_training_loss(server: Server, tmp_path: Path) -> None:
    window = browser.Browser(tmp_path / "profile")
    try:
        window.driver.get(server.told["url"] + OPENING)
        cards = window.wait(lambda: window.texts("card-view"))
        assert cards[0].split()[:2] == ["train", "/loss"], cards
    finally:
        window.close()


def test_each_attempt_is_marked_and_has_a_card(server: Server) -> None:
    marks = server.get("plugin/text/text?run=two&tag=run/events")
    assert [mark["step"] for mark in marks] == [0, 15, 30]
    assert (
        "attempt 3</strong> starts at step 30. The one before ended: preempted."
        in (marks[-1]["text"])
    )
    cards = server.get("plugin/text/text?run=two&tag=run/card")
    assert [f"<td>node{attempt}</td>" in card["text"] for attempt, card in enumerate(cards, 1)] == [
        True
    ] * 3
    assert "<td>train.lr</td>\n<td>0.5</td>\n<td>file made.yaml</td>" in cards[0]["text"]


def test_hyperparameters_tell_the_runs_apart(server: Server) -> None:
    asked = {
        "allowedStatuses": ["STATUS_RUNNING", "STATUS_SUCCESS", "STATUS_UNKNOWN"],
        "colParams": [],
        "startIndex": 0,
        "sliceSize": 10,
    }
    groups = server.get("plugin/hparams/session_groups", asked)["sessionGroups"]
    found = {group["sessions"][0]["name"]: group for group in groups}
    assert {name: group["hparams"]["train.lr"] for name, group in found.items()} == {
        HOSTILE: 0.01,
        "two": 0.5,
    }
    assert found["two"]["sessions"][0]["status"] == "STATUS_SUCCESS"
    last = {m["name"]["tag"]: m["value"] for m in found["two"]["metricValues"]}
    assert last["train/loss"] == pytest.approx(50.3)


def test_it_listens_here_alone_and_leaves_nothing(server: Server) -> None:
    assert_schema("tensorboard", server.told)
    assert server.told["host"] == "127.0.0.1"
    port = server.told["port"]
    assert server.told["tunnel"].startswith(f"ssh -N -L {port}:localhost:{port} ")
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children").read_text()
    assert server.end(signal.SIGINT) == 0
    assert children.split()
    assert not [pid for pid in children.split() if Path(f"/proc/{pid}").exists()]
    assert list(server.tmp.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_ends_are_clean_too(server: Server, tmp_path: Path, number: signal.Signals) -> None:
    runs_dir = Path(os.path.realpath(server.tmp.parent / "runs"))
    other = Server(runs_dir, tmp_path / "tmp")
    assert other.end(number) == 0
    assert list(other.tmp.iterdir()) == []


def test_killed_it_leaves_no_server(server: Server, tmp_path: Path) -> None:
    other = Server(server.tmp.parent / "runs", tmp_path / "tmp")
    children = Path(f"/proc/{other.process.pid}/task/{other.process.pid}/children").read_text()
    (child,) = children.split()
    assert other.end(signal.SIGKILL) == -signal.SIGKILL
    status = Path(f"/proc/{child}/status")
    # Nobody may be there to reap it.
    wait_until(lambda: not status.exists() or "zombie" in status.read_text(), 30, "it has ended")


def test_nohup_is_respected(server: Server, tmp_path: Path) -> None:
    other = Server(server.tmp.parent / "runs", tmp_path / "tmp", "nohup")
    status = Path(f"/proc/{other.process.pid}/status").read_text()
    ignored = next(line for line in status.splitlines() if line.startswith("SigIgn:"))
    assert int(ignored.split()[1], 16) & 1 << signal.SIGHUP - 1
    assert other.end(signal.SIGTERM) == 0


def test_links_follow_the_runs(tmp_path: Path) -> None:
    here, there = RunDir(tmp_path / "a" / "one"), RunDir(tmp_path / "b" / "one")
    other, folder = RunDir(tmp_path / "a" / "two"), tmp_path / "links"
    folder.mkdir()

    def links() -> dict[str, Path]:
        return {path.name: path.readlink() for path in folder.iterdir()}

    link_runs(folder, [here, there])
    assert links() == {"one": here.tensorboard, "one (2)": there.tensorboard}
    link_runs(folder, [there, other])
    assert links() == {"one": there.tensorboard, "two": other.tensorboard}

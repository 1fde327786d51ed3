"""``mgpt4 report`` draws what TensorBoard and the ledger hold."""

from __future__ import annotations

import base64
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from mgpt4_hpc.run_dir import read_json, write_json
from mgpt4_hpc.telemetry import tags
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import Ledger
from mgpt4_hpc.telemetry.report import read_curves
from mgpt4_hpc.telemetry.tensorboard import TensorBoardWriter
from tests.cli.fakes import Mgpt4
from tests.cli.synthetic import Clock, attempt, make_run


@pytest.mark.slow
def test_a_picture_and_a_page_that_holds_it(mgpt4: Mgpt4, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    clock = Clock()
    attempt(run, 1, first=1, last=40, cause="preempted", clock=clock)
    attempt(run, 2, first=41, last=100, cause="finished", clock=clock)
    for purge, steps in ((None, range(1, 45)), (41, range(41, 101))):
        writer = TensorBoardWriter(run.tensorboard, purge_step=purge)
        for step in steps:
            writer.scalars(step, {tags.TRAIN_LOSS: 5 - step / 50, tags.TRAIN_LR: 1e-4})
        writer.close()
    assert [step for step, _ in read_curves(run.tensorboard)[tags.TRAIN_LOSS]] == list(
        range(1, 101)
    )

    ledger = Ledger(run.ledger, 2)
    ledger.event(Kind.CHANGED, what=["train.lr was 0.01, is 0.001"], step=60)
    ledger.close()
    identity = read_json(run.identity_file)
    write_json(run.identity_file, {**identity, "branched_from": [{"name": "zero", "step": 20}]})
    ended = mgpt4("report", "one", "--out", "new/folder", "--json")
    assert (ended.code, ended.err) == (0, ""), "steps that were drawn again are no news"
    with Image.open(ended.json["png"]) as image:
        assert image.format == "PNG" and min(image.size) > 600
    page = Path(ended.json["html"]).read_text()
    (held,) = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(held) == Path(ended.json["png"]).read_bytes()
    assert "one continues zero@20" in page and "<td>preempted</td>" in page and "goodput" in page
    assert "<td>60</td><td>train.lr was 0.01, is 0.001</td>" in page


@pytest.mark.slow
def test_the_lines_of_the_page_copy_each_step_once_to_wandb(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "curves.md").read_text()
    (script,) = re.findall(r"```python\n# to_wandb.py\n(.*?)```", page, re.DOTALL)
    run = make_run(tmp_path / "runs")
    for purge, steps in ((None, range(1, 6)), (4, range(4, 9))):
        writer = TensorBoardWriter(run.tensorboard, purge_step=purge)
        for step in steps:
            writer.scalars(step, {tags.TRAIN_LOSS: step / 10, tags.TRAIN_LR: 1e-4})
        writer.close()
    # The real library wants a server of its own; this one takes what it would be given.
    (tmp_path / "wandb.py").write_text(
        "from contextlib import contextmanager\n"
        "class Board:\n    def log(self, values, step): print(step, sorted(values))\n"
        "@contextmanager\ndef init(**options):\n    assert options['mode'] == 'offline'\n"
        "    yield Board()\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", script, str(run.path)],
        capture_output=True, text=True, cwd=tmp_path, check=True,
    )  # fmt: skip
    assert ended.stdout.splitlines() == [f"{n} ['train/loss', 'train/lr']" for n in range(1, 9)]


@pytest.mark.slow
def test_a_run_without_curves_is_drawn_too(mgpt4: Mgpt4, tmp_path: Path) -> None:
    run = make_run(tmp_path / "runs")
    attempt(run, 1, first=1, last=3)
    assert mgpt4("report", "one").code == 0


@pytest.mark.slow
def test_a_report_is_written_over_an_earlier_one_only(mgpt4: Mgpt4, tmp_path: Path) -> None:
    attempt(make_run(tmp_path / "runs"), 1, first=1, last=3)
    Image.new("RGB", (8, 8)).save("one.png")
    before = Path("one.png").read_bytes()
    ended = mgpt4("report", "one")
    assert ended.code == 2 and "one.png exists" in ended.err
    assert Path("one.png").read_bytes() == before and not Path("one.html").exists()
    Path("one.png").unlink()
    assert mgpt4("report", "one").code == 0
    assert mgpt4("report", "one").code == 0
    Path("one.html").write_text("<!doctype html><title>mine</title>")
    assert mgpt4("report", "one").code == 2
    assert "mine" in Path("one.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("one",), 1, "has not started yet"),
        (("two",), 6, "no run 'two'"),
        (("one", "--out", "none"), 1, "has not started"),
    ],
)
def test_refused(
    mgpt4: Mgpt4, tmp_path: Path, arguments: tuple[str, ...], code: int, told: str
) -> None:
    make_run(tmp_path / "runs")
    ended = mgpt4("report", *arguments)
    assert ended.code == code and told in ended.err

"""``mgpt4 eval`` and ``compare`` on an untrained model: tables, JSON, page, curves, refusals."""

from __future__ import annotations

import json
import re
import shutil
import sys
from html import escape
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.data.index.index import build_index
from mgpt4_hpc.errors import SlurmRejected
from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import Mgpt4
from tests.cli.synthetic import attempt
from tests.support.shown import assert_schema
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run

SHORT = ("--max-new-tokens", 6, "--limit", 4)


@pytest.mark.slow
def test_failure_suite(mgpt4: Mgpt4, run: RunDir, world: TinyWorld) -> None:
    images = world.align / "image"
    ended = mgpt4("eval", run.path, "--images", images, *SHORT, "--json", "--html", "page.html")
    assert ended.code == 0, ended.err
    assert_schema("eval", ended.json)
    assert [task["task"] for task in ended.json["tasks"]] == ["detail", "poem"]
    task = ended.json["tasks"][0]
    assert set(task["metrics"]) == {"failing", "incomplete", "repetitive", "empty", "echo"}
    assert task["num_images"] == 4 and task["metrics"]["failing"] == 1.0
    page = Path("page.html").read_text()
    assert (
        "<th>95 % interval</th>" in page and "100.0% to 100.0%" in page and "Left out" not in page
    )
    assert page.count("data:image/jpeg;base64,") == 8
    assert not re.search(r'(src|href)="(?!data:)', page)
    told = mgpt4("eval", run.path, "--images", images, *SHORT)
    assert told.code == 0 and "two step-00000012, 4 images: Describe the image" in told.out


@pytest.mark.slow
def test_points_in_tensorboard(mgpt4: Mgpt4, other: RunDir, world: TinyWorld) -> None:
    assert mgpt4("eval", other.path, "--images", world.align, *SHORT).code == 0
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(other.tensorboard / "eval"))
    events.Reload()
    (tag,) = (tag for tag in events.Tags()["scalars"] if tag.endswith("/detail_failing"))
    assert tag.startswith(f"eval/{world.align.name}-")  # other images, a curve of their own
    (point,) = events.Scalars(tag)
    assert (point.step, point.value) == (12, 1.0)


@pytest.mark.slow
def test_every_checkpoint_side_by_side(mgpt4: Mgpt4, world: TinyWorld, tmp_path: Path) -> None:
    run = make_trained_run(world, tmp_path / "runs" / "one", step=12)
    early = load_file(run.checkpoints / "step-00000012" / "projector.safetensors")
    late = {name: -tensor for name, tensor in early.items()}
    CheckpointStore(run.checkpoints).commit(30, {"projector": late}, {"samples_seen": 30})
    asked = ("--images", world.align, *SHORT)
    ended = mgpt4("eval", "one", "--every-checkpoint", *asked, "--json", "--html", "page.html")
    assert ended.code == 0, ended.err
    first, last = ended.json["checkpoints"]
    assert (first["step"], last["step"]) == (12, 30)
    alone = mgpt4("eval", run.checkpoints / "step-00000030", *asked, "--json").json
    assert alone == last and alone["tasks"] != first["tasks"]
    losses = mgpt4("eval", "one", "--every-checkpoint", "--suite", "loss", *asked[:2], "--json")
    assert [found["model"][-2:] for found in losses.json["checkpoints"]] == ["12", "30"]
    page = Path("page.html").read_text()
    assert "one step-00000012" in page and "one step-00000030" in page
    interval = r"<td>[\d.]+% \([\d.]+% to [\d.]+%\)</td>"
    assert re.search(rf"<td>failing</td>{interval}{interval}</tr>", page), page[:5000]

    attempt(run, 1, first=1, last=30)
    assert mgpt4("report", "one").code == 0
    shown = Path("one.html").read_text()
    assert "<th>step 12</th><th>step 30</th>" in shown
    for found in (first, last):
        answer = " ".join(found["tasks"][0]["answers"][0]["text"].split())
        assert answer and f"<td>{escape(answer)}</td>" in shown
    assert re.search(r"<td>[^<]*detail_failing</td><td>1</td><td>1</td>", shown)


@pytest.mark.slow
def test_answers_that_are_kept(mgpt4: Mgpt4, run: RunDir, world: TinyWorld) -> None:
    asked = ("eval", run.path, "--images", world.align / "image", *SHORT, "--batch-size", 2)
    whole = mgpt4(*asked, "--json").json
    for part in ("1/2", "2/2"):
        assert mgpt4(*asked, "--answers", "kept", "--part", part).code == 0
    written = {path: path.read_text() for path in Path("kept").glob("*.jsonl")}
    assert len(written) == 2
    (path, text), *_ = written.items()
    path.write_text(text[:-30])  # killed while it wrote
    kept = mgpt4(*asked, "--answers", "kept", "--json")
    assert kept.code == 0 and kept.json == whole, kept.err
    assert mgpt4(*asked, "--answers", "kept", "--temperature", 1).code == 2
    losses = ("eval", run.path, "--suite", "loss", "--json")
    measured = mgpt4(*losses).json
    for _ in range(2):
        assert mgpt4(*losses, "--answers", "losses").json == measured


@pytest.mark.slow
def test_a_job_that_is_refused_leaves_nothing(
    mgpt4: Mgpt4, run: RunDir, world: TinyWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("eval", run.path, "--images", world.align / "image", *SHORT, "--slurm")
    monkeypatch.setattr(sys, "argv", ["mgpt4", *map(str, asked)])
    monkeypatch.setattr("mgpt4_hpc.launch.slurm.commands.show_config", str)
    monkeypatch.setattr("mgpt4_hpc.launch.submit.preflight_slurm.task_faults", lambda *_, **__: [])
    folders = []

    def refuse(path: Path, script: str) -> str:
        folders.append(path.parent)
        raise SlurmRejected("sbatch refused the job: Invalid account")

    monkeypatch.setattr("mgpt4_hpc.launch.side_jobs.array._sbatch", refuse)
    for answers in ((), ("--answers", "kept")):
        assert mgpt4(*asked, *answers).code == 4
        assert not folders[-1].exists()
    Path("kept").mkdir()
    assert mgpt4(*asked, "--answers", "kept").code == 4
    assert Path("kept").exists(), "it may hold answers"


@pytest.mark.slow
def test_kept_answers_are_not_those_of_another_model(
    mgpt4: Mgpt4, world: TinyWorld, tmp_path: Path
) -> None:
    run = make_trained_run(world, tmp_path / "two")
    asked = ("eval", run.path, "--images", world.align / "image", *SHORT, "--answers", "kept")
    assert mgpt4(*asked).code == 0
    every = mgpt4(*asked, "--every-checkpoint")
    assert every.code == 2 and "every_checkpoint: False there, True now" in every.err
    checkpoint = next(run.checkpoints.glob("step-*"))
    newer = make_trained_run(world, tmp_path / "newer" / "two", step=13)
    shutil.copytree(newer.checkpoints / "step-00000013", run.checkpoints / "step-00000013")
    older = mgpt4(*asked)
    assert older.code == 0 and "was begun with" in older.err and "step-00000012," in older.out
    shutil.rmtree(checkpoint)
    another = make_trained_run(world, tmp_path / "other" / "two", seed=1)
    shutil.copytree(another.checkpoints / checkpoint.name, checkpoint)
    changed = mgpt4(*asked)
    assert changed.code == 2 and "with other weights or settings" in changed.err


def test_benchmarks_have_their_own_questions(mgpt4: Mgpt4, run: RunDir) -> None:
    for options, reason in (
        (("--tasks", "pope", "--temperature", 1, "--images", "x"), "--images, --temperature"),
        (("--tasks", "pope,../mme"), "'../mme' is no task"),
        (("--task-folder", "."), "goes with --tasks"),
    ):
        refused = mgpt4("eval", run.path, *options)
        assert refused.code == 2 and reason in refused.err


@pytest.mark.slow
def test_caption_suite(mgpt4: Mgpt4, run: RunDir, world: TinyWorld) -> None:
    Path("words.txt").write_text("dog\ncat\nboat\nhouse\ntree\n")
    ended = mgpt4(
        "eval", run.path, "--suite", "caption", "--images", world.shards("laion"), *SHORT,
        "--synonyms", "words.txt", "--json",
    )  # fmt: skip
    assert ended.code == 0, ended.err
    metrics = ended.json["tasks"][0]["metrics"]
    assert {"bleu4", "bleu4_corpus", "rouge_l", "meteor_like", "cider", "chair_s"} <= set(metrics)


@pytest.mark.slow
def test_loss_suite(mgpt4: Mgpt4, run: RunDir, world: TinyWorld) -> None:
    ended = mgpt4("eval", run.path, "--suite", "loss", "--json")
    assert ended.code == 0, ended.err
    (source,) = ended.json["sources"].values()
    assert source["num_samples"] == 2 and 4 < source["loss"] < 9
    build_index(sorted(world.shards("cc_sbu").glob("*.tar")), Path("cc_sbu.index"))
    told = []
    for images in (world.shards("cc_sbu"), "cc_sbu.index"):
        given = mgpt4("eval", run.path, "--suite", "loss", "--images", images, "--limit", 3)
        assert given.code == 0 and "given" in given.out
        told.append(given.out)
    assert told[0] == told[1]


@pytest.mark.slow
def test_a_bad_image_is_left_out_and_named(
    mgpt4: Mgpt4, run: RunDir, world: TinyWorld, tmp_path: Path
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "a.jpg").write_bytes((world.align / "image" / "0.jpg").read_bytes())
    (folder / "b.jpg").write_bytes(b"<html>404</html>")
    Image.new("1", (20_000, 20_000)).save(folder / "c.png")  # a decompression bomb of 50 kB
    ended = mgpt4("eval", run.path, "--images", folder, *SHORT, "--json", "--html", "page.html")
    page = Path("page.html").read_text()
    assert "<h2>Left out</h2>" in page and "400000000 pixels" in page
    assert ended.code == 0 and ended.json["tasks"][0]["num_images"] == 1
    assert "web page" in json.dumps(ended.json["left_out"])
    assert "400000000 pixels" in json.dumps(ended.json["left_out"])
    (folder / "a.jpg").unlink()
    refused = mgpt4("eval", run.path, "--images", folder)
    assert refused.code == 1 and "none of the 2 images" in refused.err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        ((), 2, "mgpt4 eval RUN --suite loss"),
        (("--images", "nowhere"), 1, "nowhere"),
        (("--images", "IMAGES", "--weights", "nowhere"), 1, "no bundle at"),
        (("--images", "IMAGES", "--device", "cuda"), 2, "no GPU here"),
        (("--images", "IMAGES", "--suite", "caption"), 1, "no image has a reference"),
        (("--images", "IMAGES", "--html", "none/page.html"), 2, "none does not exist"),
        (("--images", "IMAGES", "--html", "mine.html"), 2, "is not a page that mgpt4 wrote"),
        (("--images", "IMAGES", "--synonyms", "none.txt"), 1, "word list none.txt"),
        (("--images", "IMAGES", "--max-new-tokens", "600"), 2, "context of 512"),
        (("--suite", "loss", "--images", "nowhere"), 1, "nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_refused(
    mgpt4: Mgpt4,
    run: RunDir,
    world: TinyWorld,
    arguments: tuple[str, ...],
    code: int,
    told: str,
) -> None:
    words = [str(world.align / "image") if word == "IMAGES" else word for word in arguments]
    Path("mine.html").write_text("mine")
    ended = mgpt4("eval", run.path, *words)
    assert ended.code == code, ended.err
    assert told in ended.err and ended.out == ""
    assert Path("mine.html").read_text() == "mine"


def test_nothing_was_kept_back(mgpt4: Mgpt4, other: RunDir) -> None:
    ended = mgpt4("eval", other.path, "--suite", "loss")
    assert ended.code == 2 and "data.val_fraction is 0" in ended.err

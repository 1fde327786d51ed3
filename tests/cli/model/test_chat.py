"""``mgpt4 chat`` over pipes: answers on stdout, the rest on stderr, and what it refuses."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import Mgpt4
from tests.support.tiny_world import TinyWorld


@pytest.fixture
def image(world: TinyWorld) -> Path:
    return world.align / "image" / "0.jpg"


@pytest.mark.slow
def test_a_conversation_on_pipes(mgpt4: Mgpt4, run: RunDir, image: Path, typed) -> None:
    typed("/help", "What is this?", "", "/image", "/what", "/save talk.json", "/history", "/quit")
    ended = mgpt4("chat", image, "--checkpoint", run.path, "--max-new-tokens", 8)
    assert ended.code == 0, ended.err
    (answer,) = ended.out.splitlines()
    assert answer and f"> What is this?\n{answer}" in ended.err
    assert ended.err.startswith("loading two ...\n")
    assert "two step-00000012 on cpu, 1 image;" in ended.err
    assert "toy" not in ended.err
    assert "cut off at the limit" in ended.err and "no command /what" in ended.err
    assert "saved 1 turn in talk.json" in ended.err

    typed("And now?", "/reset", f"/image {image}", "What is this?")
    again = mgpt4(
        "chat", "--resume", "talk.json", "--checkpoint", "two", "--runs-dir", run.path.parent,
        "--max-new-tokens", 8,
    )  # fmt: skip
    assert again.code == 0, again.err
    assert again.out.splitlines()[1] == answer


def test_without_an_image_the_language_model_answers_and_that_is_noted(
    mgpt4: Mgpt4, run: RunDir, typed
) -> None:
    typed("What is a cube?", "And a ball?")
    ended = mgpt4("chat", "--checkpoint", run.path, "--max-new-tokens", 4)
    assert ended.code == 0 and len(ended.out.splitlines()) == 2
    assert ended.err.count("(no image: /image FILE adds one") == 1, ended.err


def test_a_pipe_learns_of_failures_by_the_exit_code(mgpt4: Mgpt4, run: RunDir, typed) -> None:
    typed("/image nowhere.jpg")
    ended = mgpt4("chat", "--checkpoint", run.path)
    assert ended.code == 1 and ended.out == ""
    assert "cannot read the image nowhere.jpg" in ended.err


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (("nowhere.jpg", "--checkpoint", "RUN"), 1, "cannot read the image nowhere.jpg"),
        (("--checkpoint", "nowhere"), 6, "neither a run"),
        (("--checkpoint", "PROJECTOR"), 1, "give the bundle with --weights"),
        (("--weights", "nowhere"), 1, "no bundle at"),
        ((), 2, "give --checkpoint RUN, one of the runs in RUNS: two"),
        (("--checkpoint", "TEXT"), 1, "notes.txt is no weight file"),
        (("--checkpoint", "RUN", "--template", "klingon"), 2, "vicuna_v0"),
        (("--checkpoint", "RUN", "--device", "cuda"), 2, "no GPU here"),
        (("--temperature", "-1", "--top-p", "2"), 2, "-1.0 is not in the range"),
        (("--slurm",), 5, "srun is not installed"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)  # fmt: skip
def test_refused(
    mgpt4: Mgpt4,
    run: RunDir,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: tuple[str, ...],
    code: int,
    told: str,
) -> None:
    monkeypatch.delenv("MGPT4_WEIGHTS", raising=False)
    bare = tmp_path / "bare.safetensors"
    bare.write_bytes((run.checkpoints / "step-00000012" / "projector.safetensors").read_bytes())
    if "--slurm" in arguments:
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(sys, "argv", ["mgpt4", "chat", "--slurm"])
    text = tmp_path / "notes.txt"
    text.write_text("hello")
    monkeypatch.setenv("MGPT4_RUNS_DIR", str(run.path.parent))
    named = {"RUN": run.path, "PROJECTOR": bare, "TEXT": text}
    ended = mgpt4("chat", *(named.get(word, word) for word in arguments))
    assert ended.code == code, ended.err
    assert told.replace("RUNS", str(run.path.parent)) in ended.err and ended.out == ""

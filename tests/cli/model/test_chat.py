"""``mgpt4 chat`` over pipes: answers on stdout, the rest on stderr, and what it refuses."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.cli.shared.model_options import say_toy
from mgpt4_hpc.launch.slurm.srun import srun_command
from mgpt4_hpc.model.generation.chat_model import find_source
from mgpt4_hpc.resources import resolve_path
from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import Mgpt4
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run


@pytest.fixture(scope="session")
def run(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_trained_run(world, tmp_path_factory.mktemp("trained") / "two")


@pytest.fixture
def image(world: TinyWorld) -> Path:
    return world.align / "image" / "0.jpg"


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch):
    def type_lines(*lines: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))

    return type_lines


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


def test_file_names_as_terminals_paste_them(
    mgpt4: Mgpt4, run: RunDir, image: Path, tmp_path: Path, typed
) -> None:
    for name in ("a b.jpg", "it's.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(image.read_bytes())
    photo = tmp_path / "c.jpg"
    typed(
        f"/image '{tmp_path}/a b.jpg' {photo}", f"/image {tmp_path}/a\\ b.jpg",
        f"/image {tmp_path}/a b.jpg", f"/image {tmp_path}/it's.jpg", "/image 'a.jpg",
        f"/save {photo}", "/save one two",
    )  # fmt: skip
    ended = mgpt4("chat", "--checkpoint", run.path)
    assert ended.code == 1, ended.err
    assert ended.err.count("a b.jpg\n") == 3 and "image 5: " in ended.err
    assert "close the quote" in ended.err and "takes one file" in ended.err
    assert "c.jpg exists and is not a conversation" in ended.err
    assert photo.read_bytes() == image.read_bytes()


def test_what_a_toy_knows_is_told_of_toys(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    source = find_source(run.path)
    say_toy(source)
    assert capsys.readouterr().err == ""
    say_toy(dataclasses.replace(source, weights=Path(resolve_path("toy:weights"))))
    assert "one image at a time" in capsys.readouterr().err


def test_a_pipe_learns_of_failures_by_the_exit_code(mgpt4: Mgpt4, run: RunDir, typed) -> None:
    typed("What is this?", "/image nowhere.jpg")
    ended = mgpt4("chat", "--checkpoint", run.path)
    assert ended.code == 1 and ended.out == ""
    assert "there is no image to talk about yet" in ended.err
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


def test_the_projector_of_another_model_is_named(
    mgpt4: Mgpt4, world: TinyWorld, tmp_path: Path
) -> None:
    from mgpt4_hpc.model.bundle.export import export_projector

    torch = pytest.importorskip("torch")
    wrong = export_projector(
        {"weight": torch.zeros(4096, 768), "bias": torch.zeros(4096)},
        tmp_path / "wrong.safetensors",
        fmt="safetensors",
    )
    ended = mgpt4("chat", "--checkpoint", wrong, "--weights", world.weights)
    assert ended.code == 1
    assert "the 7B model (width 4096)" in ended.err


def test_a_damaged_checkpoint_is_not_believed(
    mgpt4: Mgpt4, world: TinyWorld, tmp_path: Path
) -> None:
    run = make_trained_run(world, tmp_path / "damaged")
    path = run.checkpoints / "step-00000012" / "projector.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    ended = mgpt4("chat", "--checkpoint", run.path)
    assert ended.code == 1 and "step-00000012" in ended.err


def test_on_a_node_of_a_cluster_that_does_not_answer(
    mgpt4: Mgpt4, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("scontrol", "srun"):
        command = tmp_path / name
        command.write_text(
            "#!/bin/sh\necho 'Unable to contact slurm controller (connect failure)' >&2\nexit 1\n"
        )
        command.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(sys, "argv", ["mgpt4", "chat", "--slurm"])
    ended = mgpt4("chat", "--slurm")
    assert ended.code == 5 and "cannot reach Slurm: Unable to contact" in ended.err


def test_on_a_node_it_starts_itself(monkeypatch: pytest.MonkeyPatch, mgpt4: Mgpt4) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr("mgpt4_hpc.launch.slurm.srun.become", started.append)
    words = [
        "chat", "a b.jpg", "--checkpoint", "two", "--slurm", "--partition", "a100", "--time=30",
        "--srun", "--qos=short", "--temperature", "1",
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["mgpt4", *words])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    assert mgpt4(*words).code == 0
    assert started == [
        [
            "srun", "--ntasks=1", "--cpus-per-task=4", "--time=30", "--gres=gpu:1",
            "--partition=a100", "--qos=short", sys.executable, "-P", "-m", "mgpt4_hpc.cli.main",
            "chat", "a b.jpg", "--checkpoint", "two", "--temperature", "1",
        ]
    ]  # fmt: skip
    assert "--pty" in srun_command([])


def test_on_a_node_no_file_of_the_folder_is_imported(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise SystemExit('imported')\n")
    command = srun_command(["version", "--help"])
    there = command[command.index(sys.executable) :]
    ended = subprocess.run(there, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr

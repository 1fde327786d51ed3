"""A node without a network: nothing asks for one, though nothing says that it must not.

The run is that of a tokenizer with a token for which the embedding has no row (``<pad>`` of Llama-2
as first published, transformers' issue 24899), with a caption and a question that spell it.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from mgpt4_hpc.resources import toy_world_dir
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.support.runs import ENVIRONMENT, patience

WATCH = """
import os, socket
def refused(name):
    def call(*arguments, **named):
        with open(os.environ["WATCHED"], "a") as file:
            file.write(f"{name} {arguments}\\n")
        raise OSError(101, "Network is unreachable")
    return call
def unless_here(real, refuse):
    # Processes of one machine share memory through sockets that are files.
    return lambda self, *address: (
        real(self, *address) if self.family == socket.AF_UNIX else refuse(*address)
    )
socket.getaddrinfo = refused("getaddrinfo")
socket.create_connection = refused("create_connection")
for name in ("connect", "connect_ex"):
    real = getattr(socket.socket, name)
    setattr(socket.socket, name, unless_here(real, refused(name)))
"""


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment in which each attempt to reach another machine is noted, and fails."""
    (tmp_path / "watch").mkdir()
    (tmp_path / "watch" / "sitecustomize.py").write_text(WATCH)
    told = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "PYTHONSAFEPATH")
    clean = {name: value for name, value in ENVIRONMENT.items() if name not in told}
    paths = filter(None, (str(tmp_path / "watch"), clean.get("PYTHONPATH")))
    return clean | {
        "PYTHONPATH": os.pathsep.join(paths),
        "WATCHED": str(tmp_path / "watched"),
        "HOME": str(tmp_path),
        "HF_HOME": str(tmp_path / "hf"),
    }


def python(*words: object, env: dict[str, str], cwd: Path, stdin: str = "") -> str:
    """What a Python command prints; without a network of any kind where the kernel lets us."""
    apart = ["unshare", "--map-root-user", "--net"]
    may = shutil.which("unshare") and subprocess.run([*apart, "true"], capture_output=True)
    command = [*(apart if may and may.returncode == 0 else []), sys.executable, *map(str, words)]
    limit_s = 300 * patience()
    done = subprocess.run(
        command, env=env, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=limit_s
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def write_shard(path: Path, caption: str) -> None:
    jpeg = (toy_world_dir() / "heldout" / "image" / "013.jpg").read_bytes()
    path.parent.mkdir(parents=True)
    with tarfile.open(path, "w") as file:
        for number in range(32):
            text = caption if number % 4 == 0 else "a red box on white"
            for name, data in ((f"{number:05d}.jpg", jpeg), (f"{number:05d}.txt", text.encode())):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                file.addfile(info, io.BytesIO(data))


def test_a_job_and_a_conversation_reach_for_no_network(
    environ: dict[str, str], tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(toy_world_dir() / "weights", weights)
    (weights / "llm" / "added_tokens.json").write_text(json.dumps({"<pad>": 640}))
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (weights / "llm" / "special_tokens_map.json").write_text(json.dumps(names))
    for source in ("laion", "cc_sbu"):
        write_shard(tmp_path / source / "00000.tar", "how to use the <pad> token")

    watched = Path(environ["WATCHED"])
    ask = "import urllib.request as u\ntry: u.urlopen('http://a.example/')\nexcept OSError: 0"
    python("-c", ask, env=environ, cwd=tmp_path)
    assert "a.example" in watched.read_text(), "the watch sees an attempt"
    watched.unlink()

    mgpt4 = ("-m", "mgpt4_hpc.cli.main")
    assert "<pad>" in python(*mgpt4, "weights", "check", weights, env=environ, cwd=tmp_path)
    settings = {
        "model.weights": weights,
        "data.paths.laion": tmp_path / "laion",
        "data.paths.cc_sbu": tmp_path / "cc_sbu",
        "train.max_steps": 4,
        "train.warmup_steps": 1,
        "train.log_every_steps": 1,
    }
    assigned = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    run = tmp_path / "run"
    words = ("--cfg-path", "toy-stage1", "--run-dir", run, *assigned)
    python("-m", "mgpt4_hpc.train", *words, env=environ, cwd=tmp_path)
    (attempt,) = read_ledgers(run / "ledger")
    assert (attempt.cause, attempt.last_step, attempt.substitutions) == ("finished", 4, 0)
    question = "what is <pad>, and <pad> again?\n"
    image = toy_world_dir() / "heldout" / "image" / "013.jpg"
    chat = ("chat", image, "--checkpoint", run, "--max-new-tokens", "8")
    python(*mgpt4, *chat, env=environ, cwd=tmp_path, stdin=question)
    assert not watched.exists(), watched.read_text()

"""A model of a 7B's width, two layers deep, from the download to the export."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from mgpt4_hpc.errors import EXIT_RESUMABLE
from mgpt4_hpc.resources import toy_world_dir
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.support.runs import ENVIRONMENT, last_step, wait_until
from tests.support.tiny_world import TinyWorld
from tests.support.weights_server import weights_server

TOY = toy_world_dir() / "weights"
WIDTH = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 2,
         "num_attention_heads": 32}  # fmt: skip


def make_language_model(folder: Path) -> None:
    """Random float16 weights of LLaMA-7B's width with the toy's tokenizer, as two ``.bin``."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = json.loads((TOY / "llm" / "config.json").read_text()) | WIDTH
    torch.manual_seed(0)
    state = LlamaForCausalLM(LlamaConfig(**config)).half().state_dict()
    shutil.copytree(TOY / "llm", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "config.json").write_text(json.dumps(config))
    names, files = sorted(state), {}
    for number, part in enumerate((names[:9], names[9:]), start=1):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save({key: state[key].clone() for key in part}, folder / name)
        files |= dict.fromkeys(part, name)
    (folder / "pytorch_model.bin.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": files})
    )


def fetch(served: Path, out: Path, tmp_path: Path) -> None:
    with weights_server(served) as server:
        sources = {
            "vit": {"url": f"{server.url}/files/eva_vit_g.pth", "file": "eva_vit_g.pth"},
            "qformer": {"url": f"{server.url}/files/blip2.pth", "file": "blip2.pth"},
            "llm": {"hub": "some/llm"},
        }
        file = tmp_path / "sources.yaml"
        file.write_text(yaml.safe_dump({"variants": {"wide": {p: p for p in sources}},
                                        "sources": sources}))  # fmt: skip
        environ = ENVIRONMENT | {"MGPT4_WEIGHT_SOURCES": str(file), "HF_ENDPOINT": server.url,
                                 "HF_HOME": str(tmp_path / "hf")}  # fmt: skip
        mgpt4("weights", "fetch", "wide", "--out", out,
              "--architecture", TOY / "architecture.json", env=environ)  # fmt: skip


def mgpt4(*words: object, env: dict[str, str] = ENVIRONMENT, **options: object) -> str:
    command = [sys.executable, "-m", "mgpt4_hpc.cli.main", *map(str, words)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr
    return str(done.stdout)


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_fetched_trained_interrupted_asked_and_exported(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    served = tmp_path / "served"
    served.mkdir()
    shutil.copy(TOY / "eva_vit_g.pth", served)
    shutil.copy(TOY / "blip2_pretrained_flant5xxl.pth", served / "blip2.pth")
    make_language_model(served / "llm")
    bundle, run = tmp_path / "bundle", tmp_path / "run"
    fetch(served, bundle, tmp_path)
    assert json.loads(mgpt4("weights", "check", bundle, "--json"))["ok"]

    config = tiny_world.write_config(
        tmp_path / "wide.yaml",
        model={"weights": str(bundle), "precision": "fp32"},
        train__max_steps=4,
        train__micro_batch_size=4,
    )
    words = ["--cfg-path", str(config), "--run-dir", str(run)]
    command = [sys.executable, "-m", "mgpt4_hpc.train", *words]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            command, env=ENVIRONMENT, cwd=tmp_path, stdout=subprocess.PIPE, text=True
        )

    loading = start()  # TERM while it loads: before the first step, after the attempt began
    assert loading.stdout is not None
    while "attempt 1" not in loading.stdout.readline():
        assert loading.poll() is None
    os.kill(loading.pid, signal.SIGTERM)
    told = loading.communicate(timeout=300)[0]
    assert loading.returncode == EXIT_RESUMABLE and "SIGTERM arrived" in told

    stepping = start()
    wait_until(lambda: last_step(run) >= 2, 900, "two steps")
    stepping.send_signal(signal.SIGTERM)
    told = stepping.communicate(timeout=600)[0]
    assert stepping.returncode in (EXIT_RESUMABLE, 0) and "SIGTERM arrived" in told

    done = subprocess.run(command, env=ENVIRONMENT, cwd=tmp_path, capture_output=True, timeout=900)
    assert done.returncode == 0, done.stderr
    first, second, *_ = read_ledgers(run / "ledger")
    assert first.last_step == 0 and second.restored_step == 0 and second.last_step >= 2
    assert "weights_loading" in first.buckets
    assert last_step(run) == 4

    image = toy_world_dir() / "heldout" / "image" / "013.jpg"
    mgpt4("chat", image, "--checkpoint", run, "--max-new-tokens", 4, input="What is this?\n")
    mgpt4("weights", "export", run, "--format", "pth", "--out", tmp_path / "p.pth")
    exported = torch.load(tmp_path / "p.pth", weights_only=True)["model"]
    assert exported["llama_proj.weight"].shape[0] == WIDTH["hidden_size"]

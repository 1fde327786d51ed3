"""Copies of a language model that the load would refuse, as people give them to the commands."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mgpt4_hpc.resources import toy_world_dir
from tests.cli.fakes import Mgpt4


def gptq(llm: Path) -> None:
    """A 4-bit copy, as MiniGPT-4's issue 13 has it."""
    tensors = {}
    for name, value in load_file(llm / "model.safetensors").items():
        if "_proj" in name:
            name = name.replace(".weight", ".qweight")
            value = torch.zeros(value.shape[1] // 8, value.shape[0], dtype=torch.int32)
        tensors[name] = value
    save_file(tensors, llm / "model.safetensors", {"format": "pt"})
    config = json.loads((llm / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    (llm / "config.json").write_text(json.dumps(config))


def another_vocabulary(llm: Path) -> None:
    """``.bin`` weights with one row more than config.json has, as in its issue 483."""
    state = load_file(llm / "model.safetensors")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        state[name] = torch.cat([state[name], state[name][:1]])
    (llm / "model.safetensors").unlink()
    torch.save(state, llm / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("break_it", "named"),
    [
        (gptq, ["config.json", "gptq", "quantized"]),
        (another_vocabulary, ["pytorch_model.bin", "embed_tokens.weight", "641 x", "640 x"]),
    ],
)  # fmt: skip
def test_import_check_and_submit_refuse_it(
    break_it: Callable[[Path], None], named: list[str], mgpt4: Mgpt4, tmp_path: Path
) -> None:
    weights = tmp_path / "weights"
    shutil.copytree(toy_world_dir() / "weights", weights)
    break_it(weights / "llm")
    original = ("--vit", weights / "eva_vit_g.pth",
                "--qformer", weights / "blip2_pretrained_flant5xxl.pth")  # fmt: skip
    chosen = ("--set", f"model.weights={weights}", "--executor", "local")
    for code, command in (
        (1, ("weights", "import", *original, "--llm", weights / "llm", "--out", "bundle")),
        (1, ("weights", "check", weights)),
        (3, ("submit", "--config", "toy-stage1", *chosen, "--dry-run")),
        (3, ("submit", "--config", "toy-stage1", *chosen)),
    ):
        ended = mgpt4(*command)
        told = ended.out + ended.err
        assert ended.code == code, told
        assert [word for word in named if word not in told] == [], told
        assert "fix" in told or "give" in told
    assert not Path("bundle").exists() and not Path("runs").exists()


@pytest.mark.slow
def test_a_token_without_a_row_is_noted_and_taken(mgpt4: Mgpt4, tmp_path: Path) -> None:
    """``<pad>`` of Llama-2 and Vicuna v0 as first published (transformers' issue 24899)."""
    weights = tmp_path / "weights"
    shutil.copytree(toy_world_dir() / "weights", weights)
    (weights / "llm" / "added_tokens.json").write_text(json.dumps({"<pad>": 640}))
    original = ("--vit", weights / "eva_vit_g.pth",
                "--qformer", weights / "blip2_pretrained_flant5xxl.pth")  # fmt: skip
    ended = mgpt4("weights", "import", *original, "--llm", weights / "llm", "--out", "bundle")
    assert ended.code == 0, ended.err
    for folder in (weights, "bundle"):
        ended = mgpt4("weights", "check", folder)
        assert ended.code == 0 and "'<pad>' = 640" in ended.out, ended.out
    chosen = ("--set", "model.weights=bundle", "--executor", "local")
    assert mgpt4("submit", "--config", "toy-stage1", *chosen, "--dry-run").code == 0

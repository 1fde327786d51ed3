"""`mgpt4 weights`, end to end on the reference folders."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mgpt4_hpc.errors import ConfigError, WeightsError
from tests.cli.model.weights_cases import call

ROOT = Path(__file__).parents[3]


def test_sizes_that_shapes_do_not_tell_are_read_beside_the_weights(vicuna, tmp_path: Path) -> None:
    for name in ("eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth"):
        shutil.copy(vicuna.path / name, tmp_path)
    words = ("import", "--vit", tmp_path / "eva_vit_g.pth", "--llm", vicuna.path / "llm",
             "--qformer", tmp_path / "blip2_pretrained_flant5xxl.pth", "--out", tmp_path / "b",
             "--json")  # fmt: skip
    with pytest.raises(WeightsError, match=r"write an architecture\.json beside the weights"):
        call(*words)
    sizes = vicuna.architecture.to_dict()
    (tmp_path / "architecture.json").write_text(json.dumps(sizes))
    told = json.loads(call(*words).stdout)
    assert told["architecture"]["vision_heads"] == sizes["vision_heads"]


def test_a_faulty_bundle_ends_with_1(imported: Path) -> None:
    (imported / "connector.safetensors").write_bytes(b"x")
    result = call("check", imported)
    assert result.exit_code == 1 and "fault: " in result.stdout


def test_a_delta_is_merged_into_the_bundle(imported: Path, vicuna, tmp_path: Path) -> None:
    path = vicuna.path
    words = (
        *("import", "--vit", path / "eva_vit_g.pth", "--out", tmp_path / "b"),
        *("--qformer", path / "blip2_pretrained_flant5xxl.pth"),
        *("--architecture", tmp_path / "architecture.json"),
    )
    with pytest.raises(WeightsError, match="looks like a finished model"):
        call(*words, "--vicuna-delta", path / "llm", path / "llm")
    assert not list(tmp_path.glob(".b*"))
    # A difference of nothing, for the order of the two: the sum is the base.
    delta = tmp_path / "delta"
    shutil.copytree(path / "llm", delta)
    base = load_file(path / "llm" / "model.safetensors")
    save_file({key: torch.zeros_like(t) for key, t in base.items()}, delta / "model.safetensors")
    assert call(*words, "--vicuna-delta", path / "llm", delta).exit_code == 0
    (merged,) = (tmp_path / "b" / "llm").glob("*.safetensors")
    assert all(torch.equal(tensor, base[key]) for key, tensor in load_file(merged).items())
    with pytest.raises(ConfigError, match="mkdir -p"):
        call(
            "import",
            *("--vit", path / "eva_vit_g.pth", "--llm", path / "llm", "--out", tmp_path / "no/b"),
        )
    assert not (tmp_path / "no").exists()
    both = call("import", "--vit", path / "eva_vit_g.pth", "--out", tmp_path / "b")
    assert both.exit_code == 2 and "either --llm or --vicuna-delta" in both.stderr


def test_help_needs_no_torch() -> None:
    code = (
        "import sys, click; from mgpt4_hpc.cli.model.weights import weights_command as w;"
        "[c.get_help(click.Context(c)) for c in [w, *w.commands.values()]];"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)

"""The reference check passes on both folders, and notices when something differs."""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

HERE = Path(__file__).parent
TOOL = HERE.parents[1] / "tools" / "check_reference.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_reference", TOOL)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def check(tool: ModuleType, folder: Path, path: str = "packed") -> tuple[int, dict]:
    result = CliRunner().invoke(tool.main, [str(folder), "--path", path, "--json"])
    return result.exit_code, json.loads(result.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("path", ["packed", "padded", "eager", "sorted", "recomputed", "cached"])
@pytest.mark.parametrize("name", ["vicuna_tiny", "llama2_tiny"])
def test_everything_agrees(tool: ModuleType, name: str, path: str) -> None:
    code, found = check(tool, HERE / name, path)
    assert code == 0 and found["ok"]
    assert len(found["rows"]) == 19 and all(row["ok"] for row in found["rows"])


@pytest.mark.slow
def test_differences_are_found(tool: ModuleType, tmp_path: Path) -> None:
    folder = tmp_path / "changed"
    shutil.copytree(HERE / "vicuna_tiny", folder)
    expected = json.loads((folder / "expected.json").read_text())
    expected["stage2.greedy_tokens"][1][5] += 1
    expected["stage1.curve"][20][1] += 1e-3
    expected["stage2.curve"][3][0] = float("nan")
    (folder / "expected.json").write_text(json.dumps(expected))
    tensors = load_file(folder / "expected.safetensors")
    tensors["stage1.regress_targets"][0, 0] += 1
    save_file(tensors, folder / "expected.safetensors")
    code, found = check(tool, folder)
    assert code == 1 and not found["ok"]
    assert [row["quantity"] for row in found["rows"] if not row["ok"]] == [
        "stage1 answer targets",
        "stage1 losses of 24 steps",
        "stage2 learning rates of 24 steps",
        "stage2 greedy tokens",
    ]


@pytest.mark.slow
def test_the_table_for_people() -> None:
    done = subprocess.run(
        [sys.executable, TOOL, HERE / "llama2_tiny"], capture_output=True, text=True, cwd="/"
    )
    assert done.returncode == 0, done.stderr
    assert "everything agrees" in done.stdout and "stage2 greedy tokens" in done.stdout
    assert not done.stderr


def test_broken_weights_end_with_a_sentence(tool: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(HERE / "vicuna_tiny", tmp_path / "broken")
    (tmp_path / "broken" / "eva_vit_g.pth").write_bytes(b"PK\x03\x04 no more")
    result = CliRunner().invoke(tool.main, [str(tmp_path / "broken")])
    assert result.exit_code == 1 and "eva_vit_g.pth is truncated" in result.stderr

"""Tests of ``model/weight_files/untrusted_files.py``."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.bundle import open_bundle


@pytest.mark.parametrize("name", ["eva_vit_g.pth", "pretrained_minigpt4.pth"])
def test_truncated_pth(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="truncated or not a torch file") as caught:
        open_bundle(folder)
    assert name in str(caught.value)


class _Bomb:
    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return (os.system, (f"touch {self.trace}",))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_never_runs(folder: Path, zipped: bool) -> None:
    trace, path = folder / "ran", folder / "pretrained_minigpt4.pth"
    content = {"model": {"llama_proj.weight": torch.zeros(2, 2)}, "config": _Bomb(trace)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps({"model": {}, "config": _Bomb(trace)}))
    with pytest.raises(WeightsError, match="more than tensors and plain values") as caught:
        open_bundle(folder)
    assert not trace.exists()
    assert ("posix.system" if zipped else "Unsupported operand") in str(caught.value)


def test_git_lfs_pointer_as_weights(folder: Path) -> None:
    (folder / "eva_vit_g.pth").write_text("version https://git-lfs.github.com/spec/v1\noid x\n")
    with pytest.raises(WeightsError, match="git-lfs pointer"):
        open_bundle(folder)


def test_web_page_and_empty_file(folder: Path) -> None:
    (folder / "eva_vit_g.pth").write_text("<!DOCTYPE html><html>moved</html>")
    with pytest.raises(WeightsError, match="web page"):
        open_bundle(folder)
    (folder / "eva_vit_g.pth").write_bytes(b"")
    with pytest.raises(WeightsError, match="is empty"):
        open_bundle(folder)

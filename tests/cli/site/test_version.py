"""``version``."""

import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from mgpt4_hpc import __version__
from tests.cli.fakes import Mgpt4


def test_versions_are_those_installed(mgpt4: Mgpt4) -> None:
    told = mgpt4("version", "--json").json
    assert told["mgpt4-hpc"] == __version__
    assert told["transformers"] == version("transformers")
    assert told["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert told["cuda"] == torch.version.cuda
    assert told["executable"] == sys.executable


def test_slurm_is_asked_and_may_be_missing(
    mgpt4: Mgpt4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\necho slurm 99.05\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert mgpt4("version", "--json").json["slurm"] == "slurm 99.05"
    assert "slurm         slurm 99.05\n" in mgpt4("version").out
    monkeypatch.setenv("PATH", "/nowhere")
    assert mgpt4("version", "--json").json["slurm"] is None

"""A bundle for the checks that precede a submission."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle.manifest import BundleManifest, LlmRecord
from mgpt4_hpc.model.weight_files.fingerprint import WeightFileRecord
from mgpt4_hpc.resources import toy_world_dir


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle as an import writes it, of the toy's language model and a vision side of nothing."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    toy = toy_world_dir() / "weights"
    shutil.copytree(toy / "llm", folder / "llm")
    header = b'{"norm":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    tower = len(header).to_bytes(8, "little") + header + bytes(4)
    (folder / "vision.safetensors").write_bytes(tower)
    files = {"vision.safetensors": WeightFileRecord.of(folder / "vision.safetensors")}
    llm = {path.name: WeightFileRecord.of(path) for path in sorted((folder / "llm").iterdir())}
    architecture = Architecture.from_file(toy / "architecture.json")
    made = BundleManifest(architecture, files, {}, LlmRecord("llm", copied=True, files=llm))
    made.write(folder / "bundle.json")
    return folder

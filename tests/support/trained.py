"""Runs as training leaves them: settings, and a checkpoint of a projector (never trained)."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.run_dir import RunDir
from tests.support.tiny_world import TinyWorld


def make_trained_run(
    world: TinyWorld, path: Path, stage: int = 2, *, seed: int = 0, step: int = 12, **settings: Any
) -> RunDir:
    """A run with one checkpoint; the same seed gives the same projector."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = world.write_config(path.with_suffix(".yaml"), stage, **settings)
    run = RunDir(path)
    run.create({"name": path.name, "stage": stage})
    write_config(run.config_file, load_config(file))
    bundle = open_bundle(world.weights)
    architecture = bundle.architecture
    torch.manual_seed(seed)
    layer = torch.nn.Linear(architecture.projector_in, architecture.llm_dim or 0)
    tensors = {f"llama_proj.{name}": p.detach() for name, p in layer.named_parameters()}
    meta = {"samples_seen": step, "bundle_digest": bundle.digest}
    CheckpointStore(run.checkpoints).commit(step, {"projector": tensors}, meta)
    return run


def other_weights(world: TinyWorld, path: Path) -> Path:
    """The world's bundle with one number of the language model changed."""
    shutil.copytree(world.weights, path)
    file = path / "llm" / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-4] ^= 1
    file.write_bytes(data)
    return path

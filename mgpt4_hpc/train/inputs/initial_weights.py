"""Where a run begins: the projector's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.errors import FatalTrainingError, WeightsError
from mgpt4_hpc.model.conversion.importer import import_projector
from mgpt4_hpc.model.weight_files.untrusted_files import read_tensors
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.causes import Cause
from mgpt4_hpc.telemetry.ledger import read_ledgers

PROJECTOR = "projector"
"""Entry of the projector in a checkpoint."""

LORA = "lora"
"""Entry of LoRA's matrices in a checkpoint, if there are any."""

OPTIMIZER = "optimizer"
"""Entry of optimizer and loss scale in a checkpoint."""


@dataclass(frozen=True)
class StartWeights:
    """A projector to start from.

    Attributes:
        tensors: ``weight`` (language width, projector input) and ``bias``, on the CPU.
        source: file or checkpoint that they came from.
        content: hash of the checkpoint's tensors or of the file.
        lora: matrices that were trained with it; without them it is of no use.
    """

    tensors: dict[str, torch.Tensor]
    source: str
    content: str
    lora: dict[str, torch.Tensor] = field(default_factory=dict)


def find_start_weights(setting: str) -> StartWeights:
    """Projector named by ``model.projector``: a run, a checkpoint, or a weight file.

    Raises:
        FatalTrainingError: the run has not finished or its last checkpoint is damaged.
        WeightsError: no such file, or no projector in it.
    """
    path = Path(setting)
    if (path / "run.json").is_file():
        return _from_run(RunDir(path))
    if (path / "manifest.json").is_file():
        return _from_checkpoint(path)
    if path.is_file():
        tensors, _ = import_projector(read_tensors(path), str(path))
        return StartWeights(dict(tensors), str(path), _content(tensors))
    raise WeightsError(
        f"model.projector {setting} is neither a run, a checkpoint nor a file",
        fix="give a run directory, a step-... folder, or pretrained_minigpt4.pth",
    )


def _from_run(run: RunDir) -> StartWeights:
    max_steps = read_config(run.config_file).config.train.max_steps
    store = CheckpointStore(run.checkpoints)
    steps = store.steps()
    last = steps[-1] if steps else 0
    # A run that stopped early is finished, too.
    attempts = read_ledgers(run.ledger)
    if last < max_steps and not (last and attempts and attempts[-1].cause == Cause.FINISHED):
        raise FatalTrainingError(
            f"the run {run.name} is at step {last} of {max_steps}, so its projector is not final",
            fix=f"finish it (`mgpt4 resume {run.path}`), or name one of its checkpoints "
            "(--set model.projector=RUN/checkpoints/step-...)",
        )
    return _from_checkpoint(store.path_of(last))


def _from_checkpoint(path: Path) -> StartWeights:
    manifest = CheckpointStore(path.parent).verify(path)
    tensors, _ = import_projector(read_tensors(path / f"{PROJECTOR}.safetensors"), str(path))
    content = manifest.files[PROJECTOR].blake2b
    lora: dict[str, torch.Tensor] = {}
    if LORA in manifest.files:
        lora = dict(read_tensors(path / f"{LORA}.safetensors"))
        content += manifest.files[LORA].blake2b
    return StartWeights(dict(tensors), str(path), content, lora)


def _content(tensors: Mapping[str, torch.Tensor]) -> str:
    import hashlib

    digest = hashlib.blake2b(digest_size=32)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()

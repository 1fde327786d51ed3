"""Take a trained projector out, for the original repository or for anything else.

A ``.pth`` is written as the original's own checkpoints are laid out
(``["model"]["llama_proj.weight"]``), so its ``ckpt:`` setting takes the file as it is.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from mgpt4_hpc.disk import fsync_file
from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.conversion.importer import State, import_projector
from mgpt4_hpc.model.weight_files.untrusted_files import read_tensors
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.run_reference import newest_checkpoint

if TYPE_CHECKING:
    import torch

PROJECTOR_FILE = "projector.safetensors"


def export_projector(
    projector: Mapping[str, torch.Tensor],
    out: Path,
    *,
    fmt: Literal["pth", "safetensors"],
    beside: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Write ``llama_proj`` bit for bit; returns ``out``, which an earlier file is replaced under.

    Args:
        projector: ``weight`` and ``bias``, with or without ``llama_proj.`` in front.
        out: the file.
        fmt: its format.
        beside: other tensors of the original's model that belong into the file, by their names.

    Raises:
        WeightsError: if the tensors are not a projector's, or the format is unknown.
    """
    state = _named(projector, str(out))
    named = {f"llama_proj.{k}": t.detach().cpu().contiguous() for k, t in state.items()}
    named.update(beside or {})
    if fmt not in ("pth", "safetensors"):
        raise WeightsError(f"unknown format {fmt!r}", fix="use pth or safetensors")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        if fmt == "pth":
            import torch

            # clone: a view would drag its whole storage into the file.
            torch.save({"model": {k: t.clone() for k, t in named.items()}}, temporary)
        else:
            from safetensors.torch import save_file

            save_file(named, temporary)
        fsync_file(temporary)
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    return out


def read_projector(path: Path) -> State:
    """``weight`` and ``bias`` from a file, a checkpoint's folder or a run (its newest checkpoint).

    Types are the source's.

    Raises:
        WeightsError: if there is no projector.
    """
    projector = find_projector(path)
    return _named(read_tensors(projector), str(projector))


def find_projector(path: Path) -> Path:
    """The file that holds the projector of a file, checkpoint or run.

    Raises:
        WeightsError: if there is none.
    """
    if path.is_file():
        return path
    for folder in (path, newest_checkpoint(RunDir(path))):
        if folder is not None and (folder / PROJECTOR_FILE).is_file():
            return folder / PROJECTOR_FILE
    raise WeightsError(
        f"{path} holds no projector",
        fix="give a run, a checkpoint (RUN/checkpoints/step-N), a bundle or a weight file",
    )


def _named(tensors: Mapping[str, torch.Tensor], source: str) -> State:
    """``weight`` and ``bias`` whatever they are called."""
    prefixed = {
        key if key.startswith("llama_proj.") or "." in key else f"llama_proj.{key}": tensor
        for key, tensor in tensors.items()
    }
    state, _ = import_projector(prefixed, source)
    return state

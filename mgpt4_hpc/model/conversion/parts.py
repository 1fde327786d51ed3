"""From other people's files to a model's parts: each tensor under its name here, checked.

The files' tensors come from a reader: real ones for a model that is built, or what the headers say
of them where only names, shapes and places are needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.conversion.blip2_folder import Blip2Folder, open_blip2_folder
from mgpt4_hpc.model.conversion.detect import detect_architecture
from mgpt4_hpc.model.conversion.importer import (
    KeyReport,
    Raw,
    State,
    identity_connector,
    import_connector,
    import_ln_vision,
    import_projector,
    import_vision,
)
from mgpt4_hpc.model.conversion.variants import require_projector_fits
from mgpt4_hpc.model.llm_files.folder import llm_width, read_llm_config

VISION_FILE = "eva_vit_g.pth"
QFORMER_FILE = "blip2_pretrained_flant5xxl.pth"
PROJECTOR_FILE = "pretrained_minigpt4.pth"
LLM_FOLDER = "llm"
ARCHITECTURE_FILE = "architecture.json"


@dataclass(frozen=True)
class Sources:
    """Where the weights come from.

    Attributes:
        vit: ``eva_vit_g.pth``, or a folder of Hugging Face's BLIP-2.
        llm: the language model's folder in Hugging Face layout, or the difference to ``base``.
        qformer: ``blip2_pretrained_flant5xxl.pth``, or a BLIP-2 folder; None for the Llama-2
            variant.
        projector: a MiniGPT-4 checkpoint to start from, or None.
        architecture: sizes, where the shapes do not show them.
        base: LLaMA's folder, where ``llm`` is Vicuna's published difference to it.
    """

    vit: Path
    llm: Path
    qformer: Path | None = None
    projector: Path | None = None
    architecture: Architecture | None = None
    base: Path | None = None


@dataclass(frozen=True)
class Parts:
    """Tensors under their names here, and what became of the sources' keys.

    Attributes:
        vision, connector: the frozen towers.
        projector: ``weight`` and ``bias``; None without one.
        reports: one per source.
        architecture: all sizes, the language model's width included.
    """

    vision: State
    connector: State
    projector: State | None
    reports: tuple[KeyReport, ...]
    architecture: Architecture


def original_sources(folder: Path, architecture: Architecture | None = None) -> Sources:
    """A folder that holds the original's own files under their own names."""
    qformer, projector = folder / QFORMER_FILE, folder / PROJECTOR_FILE
    return Sources(
        vit=folder / VISION_FILE,
        llm=folder / LLM_FOLDER,
        qformer=qformer if os.path.lexists(qformer) else None,
        projector=projector if os.path.lexists(projector) else None,
        architecture=architecture,
    )


def gather(
    sources: Sources,
    read: Callable[[Path], Raw],
    constant: Callable[[int, float], Any] | None = None,
) -> Parts:
    """Take each source's tensors, and check that the parts fit each other.

    Args:
        sources: the files.
        read: reads a file's tensors, or its header.
        constant: as in ``identity_connector``.

    Raises:
        WeightsError: on anything missing, broken, unexplained or unfitting.
    """
    llm_config = read_llm_config(sources.llm)
    vit = _open(sources.vit, read)
    same = sources.qformer == sources.vit
    qformer = vit if same else _open(sources.qformer, read) if sources.qformer else None
    arch = sources.architecture or _beside(sources.vit) or _architecture(vit, qformer)
    arch = arch.with_llm_dim(llm_width(llm_config, sources.llm))
    if arch.qformer and qformer is None:
        raise WeightsError(
            "the architecture has a Q-Former, but there is no file for it",
            fix=f"give {QFORMER_FILE}; only the Llama-2 variant has none",
        )
    if isinstance(vit, Blip2Folder):
        vision, vision_report = vit.vision(arch)
    else:
        vision, vision_report = import_vision(vit, arch, str(sources.vit))
    if isinstance(qformer, Blip2Folder):
        connector, connector_report = qformer.connector(arch)
    elif qformer is not None:
        take = import_connector if arch.qformer else import_ln_vision
        connector, connector_report = take(qformer, arch, str(sources.qformer))
    else:
        connector, connector_report = identity_connector(arch, constant)
    reports, projector = [vision_report, connector_report], None
    if sources.projector:
        path = sources.projector
        projector, report = import_projector(read(path), str(path))
        require_projector_fits(arch, arch.llm_dim or 0, tuple(projector["weight"].shape), str(path))
        reports.append(report)
    return Parts(vision, connector, projector, tuple(reports), arch)


def _open(path: Path, read: Callable[[Path], Raw]) -> Raw | Blip2Folder:
    return open_blip2_folder(path) if path.is_dir() else read(path)


def _beside(vit: Path) -> Architecture | None:
    """Sizes in an architecture.json beside the file, for models with ambiguous shapes."""
    file = vit.parent / ARCHITECTURE_FILE
    return Architecture.from_file(file) if vit.is_file() and file.is_file() else None


def _architecture(vit: Raw | Blip2Folder, qformer: Raw | Blip2Folder | None) -> Architecture:
    if isinstance(vit, Blip2Folder):
        if qformer is None:
            raise WeightsError(
                "a BLIP-2 folder alone does not say whether its Q-Former is to be used",
                fix="give it as --qformer too, or an --architecture with qformer false",
            )
        return vit.architecture
    if isinstance(qformer, Blip2Folder):
        return qformer.architecture
    return detect_architecture(vit, qformer)

"""A bundle: all the weights that one MiniGPT-4 starts from, in one folder.

Two kinds of folder are opened alike. One is written by ``mgpt4 weights import`` (``bundle.json``
and safetensors). The other has the original's own files::

    eva_vit_g.pth                    the vision tower
    blip2_pretrained_flant5xxl.pth   ln_vision and Q-Former; absent in the Llama-2 variant
    pretrained_minigpt4.pth          llama_proj; absent before the first training
    llm/                             the language model in Hugging Face layout
    architecture.json                sizes; may be absent where the shapes show them
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.formatting import beside
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle.manifest import (
    BUNDLE_FILE,
    EXPORT_FOLDER,
    EXPORT_RECORD,
    BundleManifest,
)
from mgpt4_hpc.model.conversion.importer import KeyReport, State
from mgpt4_hpc.model.conversion.parts import VISION_FILE, Sources, gather, original_sources
from mgpt4_hpc.model.llm_files.folder import llm_files, read_llm_config
from mgpt4_hpc.model.weight_files.fingerprint import combined, fingerprint
from mgpt4_hpc.model.weight_files.untrusted_files import read_tensors


@dataclass(frozen=True)
class Bundle:
    """Weights of the frozen towers, a start for the projector, and where the LLM is.

    Tensors are mapped from their files and keep the files' types.

    Attributes:
        path: the folder.
        architecture: all sizes, ``llm_dim`` included.
        llm_dir: the language model's folder in Hugging Face layout.
        llm_config: its ``config.json``.
        digest: changes when any weight changes; a run's checkpoints carry it.
        reports: what became of each source's keys.
    """

    path: Path
    architecture: Architecture
    llm_dir: Path
    llm_config: dict[str, Any]
    digest: str
    reports: tuple[KeyReport, ...] = ()
    _vision: State = field(default_factory=dict, repr=False)
    _connector: State = field(default_factory=dict, repr=False)
    _projector: State | None = field(default=None, repr=False)

    def vision_state(self) -> State:
        """Tensors of the ViT under timm's names; ``pos_embed`` with the file's own grid."""
        return dict(self._vision)

    def qformer_state(self) -> State:
        """Tensors of the connector: ``ln_vision.*``, and of a Q-Former all others."""
        return dict(self._connector)

    def projector_state(self) -> State | None:
        """``weight`` (llm_dim, projector_in) and ``bias``, float32; None where training starts."""
        if self._projector is None:
            return None
        return {key: tensor.float() for key, tensor in self._projector.items()}


def open_bundle(path: Path | str, *, architecture: Architecture | None = None) -> Bundle:
    """Open a folder of either kind, checking that its parts fit each other.

    Args:
        path: the folder.
        architecture: overrides the folder's ``architecture.json`` and the shapes.

    Raises:
        WeightsError: on anything missing, broken or of another model, naming file and key.
    """
    folder = Path(path)
    require_bundle(folder)
    if (folder / BUNDLE_FILE).exists():
        return _open_written(folder, architecture)
    return _open_original(folder, architecture)


def bundle_digest(folder: Path) -> str:
    """The digest of ``open_bundle``, without a look at any tensor.

    Raises:
        WeightsError, OSError: it is no bundle, or cannot be read.
    """
    require_bundle(folder)
    if (folder / BUNDLE_FILE).exists():
        return BundleManifest.read(folder / BUNDLE_FILE).digest
    return original_digest(original_sources(folder))


def require_bundle(folder: Path) -> None:
    """Raises WeightsError unless it is a folder of either kind."""
    make = "make one with `mgpt4 weights import`"
    if folder.is_file():
        inside = _holds_bundle(folder.parent)
        raise WeightsError(
            f"{folder} is a file, and a bundle is a folder",
            fix=f"give the folder, {folder.parent}" if inside else make,
        )
    if not folder.is_dir():
        raise WeightsError(
            f"no bundle at {folder}{beside(folder)}",
            fix=f"if it was moved, give its new path; or {make}",
        )
    if not _holds_bundle(folder):
        if (folder / EXPORT_FOLDER / EXPORT_RECORD).exists():
            raise WeightsError(
                f"{folder} was written by `mgpt4 weights export`, and is no bundle",
                fix=f"make a bundle of it: `mgpt4 weights import --hf {folder} --out BUNDLE`",
            )
        if (folder / "config.json").exists():
            raise WeightsError(
                f"{folder} is a language model's folder, and no bundle",
                fix=f"make a bundle with it: `mgpt4 weights import --llm {folder} ...`",
            )
        raise WeightsError(
            f"{folder} is no bundle: it has neither {BUNDLE_FILE} nor {VISION_FILE}",
            fix=make,
        )


def _holds_bundle(folder: Path) -> bool:
    return (folder / BUNDLE_FILE).exists() or os.path.lexists(folder / VISION_FILE)


def _open_written(folder: Path, architecture: Architecture | None) -> Bundle:
    """A folder that an import wrote, if its files are still those that it wrote."""
    manifest = BundleManifest.read(folder / BUNDLE_FILE)
    llm_dir = manifest.llm_dir(folder)
    if not llm_dir.is_dir():
        raise WeightsError(
            f"{folder} refers to the language model in {llm_dir}, which is not there",
            fix="put it back, or import again, with --copy to keep it in the bundle",
        )
    faults = manifest.faults(folder)
    if faults:
        raise WeightsError(
            f"{folder} is not what was imported: " + "; ".join(faults),
            fix="import the weights again, or restore the file",
        )
    arch = manifest.architecture
    if architecture is not None:
        arch = architecture.with_llm_dim(arch.llm_dim or 0)
    states = {name: read_tensors(folder / name) for name in manifest.files}
    projector = states.get("projector.safetensors")
    if projector is not None:
        projector = {key.removeprefix("llama_proj."): t for key, t in projector.items()}
    return Bundle(
        path=folder,
        architecture=arch,
        llm_dir=llm_dir,
        llm_config=read_llm_config(llm_dir),
        digest=manifest.digest,
        reports=tuple(KeyReport.from_dict(source) for source in manifest.sources),
        _vision=states["vision.safetensors"],
        _connector=states["connector.safetensors"],
        _projector=projector,
    )


def _open_original(folder: Path, architecture: Architecture | None) -> Bundle:
    """A folder of the original's files, imported in memory."""
    sources = original_sources(folder, architecture)
    parts = gather(sources, read_tensors)
    return Bundle(
        path=folder,
        architecture=parts.architecture,
        llm_dir=sources.llm,
        llm_config=read_llm_config(sources.llm),
        digest=original_digest(sources),
        reports=parts.reports,
        _vision=parts.vision,
        _connector=parts.connector,
        _projector=parts.projector,
    )


def original_digest(sources: Sources) -> str:
    """Identity of the original's files in one folder: sizes and samples of all of them."""
    files = [p for p in (sources.vit, sources.qformer, sources.projector) if p]
    files += llm_files(sources.llm)
    folder = sources.vit.parent
    return combined((str(p.relative_to(folder)), fingerprint(p)) for p in files)

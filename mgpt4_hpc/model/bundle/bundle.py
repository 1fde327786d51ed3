"""A bundle: all the weights that one MiniGPT-4 starts from, in one folder.

Two kinds of folder are opened alike. One is written by ``mgpt4 weights import`` (``bundle.json``
and safetensors). The other has the original's own files::

    eva_vit_g.pth                    the vision tower
    blip2_pretrained_flant5xxl.pth   ln_vision and Q-Former; absent in the Llama-2 variant
    pretrained_minigpt4.pth          llama_proj; absent before the first training
    llm/                             the language model in Hugging Face layout
    architecture.json                sizes; may be absent where the shapes tell them
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle.detect import detect_architecture
from mgpt4_hpc.model.bundle.fingerprint import combined, fingerprint
from mgpt4_hpc.model.bundle.importer import (
    KeyReport,
    State,
    identity_connector,
    import_connector,
    import_ln_vision,
    import_projector,
    import_vision,
)
from mgpt4_hpc.model.bundle.llm_folder import llm_files, llm_width, read_llm_config
from mgpt4_hpc.model.bundle.manifest import BUNDLE_FILE, Manifest
from mgpt4_hpc.model.bundle.untrusted_files import read_tensors
from mgpt4_hpc.model.bundle.variants import require_projector_fits

VISION_FILE = "eva_vit_g.pth"
QFORMER_FILE = "blip2_pretrained_flant5xxl.pth"
PROJECTOR_FILE = "pretrained_minigpt4.pth"
LLM_FOLDER = "llm"
ARCHITECTURE_FILE = "architecture.json"


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
        architecture: overrides the folder's ``architecture.json`` and what shapes tell.

    Raises:
        WeightsError: on anything missing, broken or of another model, naming file and key.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise WeightsError(f"no bundle at {folder}", fix="make one with `mgpt4 weights import`")
    if (folder / BUNDLE_FILE).exists():
        return _open_written(folder, architecture)
    if not (folder / VISION_FILE).exists():
        raise WeightsError(
            f"{folder} is no bundle: it has neither {BUNDLE_FILE} nor {VISION_FILE}",
            fix="make one with `mgpt4 weights import`",
        )
    return _open_original(folder, architecture)


def _open_written(folder: Path, architecture: Architecture | None) -> Bundle:
    """A folder that an import wrote, if its files are still those that it wrote."""
    manifest = Manifest.read(folder / BUNDLE_FILE)
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
    vision_path, qformer_path = folder / VISION_FILE, folder / QFORMER_FILE
    projector_path, llm_dir = folder / PROJECTOR_FILE, folder / LLM_FOLDER
    llm_config = read_llm_config(llm_dir)
    raw_vision = read_tensors(vision_path)
    raw_connector = read_tensors(qformer_path) if qformer_path.exists() else None
    if architecture is None and (folder / ARCHITECTURE_FILE).exists():
        architecture = Architecture.from_file(folder / ARCHITECTURE_FILE)
    arch = architecture or detect_architecture(raw_vision, raw_connector)
    arch = arch.with_llm_dim(llm_width(llm_config, llm_dir))
    if arch.qformer and raw_connector is None:
        raise WeightsError(f"the architecture has a Q-Former, but {qformer_path} is missing")

    vision, vision_report = import_vision(raw_vision, arch, str(vision_path))
    if raw_connector is not None:
        take = import_connector if arch.qformer else import_ln_vision
        connector, connector_report = take(raw_connector, arch, str(qformer_path))
    else:
        connector, connector_report = identity_connector(arch)
    reports = [vision_report, connector_report]
    projector = None
    if projector_path.exists():
        projector, report = import_projector(read_tensors(projector_path), str(projector_path))
        reports.append(report)
        require_projector_fits(
            arch, arch.llm_dim or 0, tuple(projector["weight"].shape), str(projector_path)
        )
    files = [p for p in (vision_path, qformer_path, projector_path) if p.exists()]
    files += llm_files(llm_dir)
    digest = combined((str(p.relative_to(folder)), fingerprint(p)) for p in files)
    return Bundle(
        folder, arch, llm_dir, llm_config, digest, tuple(reports), vision, connector, projector
    )

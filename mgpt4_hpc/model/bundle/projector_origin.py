"""Which language model a projector was trained with, where a run or a checkpoint records it."""

from __future__ import annotations

from pathlib import Path

from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.model.bundle.bundle import original_digest
from mgpt4_hpc.model.bundle.manifest import BUNDLE_FILE, BundleManifest
from mgpt4_hpc.model.conversion.parts import original_sources
from mgpt4_hpc.model.llm_files.folder import llm_files
from mgpt4_hpc.model.weight_files.fingerprint import fingerprint
from mgpt4_hpc.resources import resolve_path
from mgpt4_hpc.run_dir import RunDir, read_json
from mgpt4_hpc.run_reference import newest_checkpoint

_WEIGHTS = (".safetensors", ".bin")


def other_llm_note(projector: Path, weights: Path) -> str:
    """A sentence if a projector was trained with another language model than a bundle's, else "".

    Language models of one width pass every check of sizes, and the answers then make no sense. A
    fine-tuned version of the same language model may still do, so this is no fault.

    Args:
        projector: a run, a checkpoint's folder, or a projector's file.
        weights: the bundle to use it with.
    """
    folder = projector.parent if projector.is_file() else projector
    run = RunDir(folder if (folder / "run.json").is_file() else folder.absolute().parent.parent)
    checkpoint = newest_checkpoint(run) if run.path == folder else folder
    recorded = None
    try:
        digest, llm = _digests(weights)
        if checkpoint is not None:
            recorded = read_json(checkpoint / "manifest.json")["meta"].get("bundle_digest")
        trained_weights = Path(resolve_path(read_config(run.config_file).config.model.weights))
    except (MgptError, OSError, ValueError, KeyError):
        return ""  # no run's projector, or the bundle has faults, which are reported elsewhere
    try:
        trained_digest, trained_llm = _digests(trained_weights)
    except (MgptError, OSError, ValueError):
        trained_digest, trained_llm = "", frozenset()
    other = f"another language model, that of {trained_weights}"
    if recorded is None and not trained_digest:
        return ""
    if recorded not in (None, trained_digest):  # another bundle lies there now, or none
        other = f"another bundle, which no longer lies in {trained_weights}"
        trained_llm = frozenset()
    if recorded == digest or trained_llm == llm:
        return ""
    return (
        f"the projector of {projector} was trained with {other}; with another language model its "
        "answers make no sense, unless one is a fine-tuned version of the other"
    )


def _digests(folder: Path) -> tuple[str, frozenset[str]]:
    """Digest of a bundle, and fingerprints of its language model's weight files."""
    if (folder / BUNDLE_FILE).is_file():
        manifest = BundleManifest.read(folder / BUNDLE_FILE)
        files = {name: record.fingerprint for name, record in manifest.llm.files.items()}
        digest = manifest.digest
    else:
        sources = original_sources(folder)
        files = {path.name: fingerprint(path) for path in llm_files(sources.llm)}
        digest = original_digest(sources)
    return digest, frozenset(
        value for name, value in files.items() if Path(name).suffix in _WEIGHTS
    )

"""Write a bundle from other people's files (``mgpt4 weights import``).

The folder appears under its name only when it is complete.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle.blip2_folder import Blip2Folder, open_blip2_folder
from mgpt4_hpc.model.bundle.bundle import ARCHITECTURE_FILE, Bundle, open_bundle
from mgpt4_hpc.model.bundle.detect import detect_architecture
from mgpt4_hpc.model.bundle.fingerprint import full_hash
from mgpt4_hpc.model.bundle.headers import read_header
from mgpt4_hpc.model.bundle.importer import (
    KeyReport,
    State,
    identity_connector,
    import_connector,
    import_ln_vision,
    import_projector,
    import_vision,
)
from mgpt4_hpc.model.bundle.llm_folder import companion_files, llm_files, llm_width, read_llm_config
from mgpt4_hpc.model.bundle.manifest import BUNDLE_FILE, FileRecord, LlmRecord, Manifest
from mgpt4_hpc.model.bundle.tokenizer import load_tokenizer
from mgpt4_hpc.model.bundle.untrusted_files import read_tensors
from mgpt4_hpc.model.bundle.variants import require_projector_fits
from mgpt4_hpc.model.bundle.vicuna_delta import merge_vicuna_delta

Say = Callable[[str], None]
LlmMode = Literal["refer", "copy", "move"]


@dataclass(frozen=True)
class Sources:
    """Where the weights come from.

    Attributes:
        vit: ``eva_vit_g.pth``, or a folder of Hugging Face's BLIP-2.
        llm: the language model's folder in Hugging Face layout, or the difference to ``base``.
        qformer: ``blip2_pretrained_flant5xxl.pth``, or a BLIP-2 folder; None for the Llama-2
            variant.
        projector: a MiniGPT-4 checkpoint to start from, or None.
        architecture: sizes, where the shapes do not tell them.
        base: LLaMA's folder, where ``llm`` is Vicuna's published difference to it.
    """

    vit: Path
    llm: Path
    qformer: Path | None = None
    projector: Path | None = None
    architecture: Architecture | None = None
    base: Path | None = None


def write_bundle(
    out: Path, sources: Sources, *, llm: LlmMode = "refer", say: Say = lambda _line: None
) -> Bundle:
    """Import, check, write, and open what was written.

    Args:
        out: the new folder; it must not exist.
        sources: the files.
        llm: refer to the language model's folder where it is, copy it into the bundle, or move it;
            one that is merged with a base becomes part of the bundle in any case.
        say: called with a line before each slow step.

    Raises:
        WeightsError: on anything missing, broken, unexplained or unfitting; nothing is left behind.
    """
    if out.exists():
        raise WeightsError(f"{out} exists already", fix="choose another name, or remove it first")
    say("reading the vision side")
    parts, reports, arch = _import_all(sources)
    load_tokenizer(sources.llm)
    if sources.base is None:
        save_parts(out, parts, arch, sources.llm, llm, reports, say=say)
        return open_bundle(out)
    # Last, as it takes the longest: whatever is wrong with the rest has been told by now.
    merged = out.with_name(f".{out.name}.vicuna-{uuid.uuid4().hex[:8]}")
    try:
        merge_vicuna_delta(sources.base, sources.llm, merged, say=say)
        save_parts(out, parts, arch, merged, "move", reports, say=say)
    finally:
        shutil.rmtree(merged, ignore_errors=True)
    return open_bundle(out)


def save_parts(
    out: Path,
    parts: Mapping[str, State],
    arch: Architecture,
    llm_folder: Path,
    llm: LlmMode,
    reports: Sequence[KeyReport] = (),
    *,
    say: Say = lambda _line: None,
) -> None:
    """Write tensors under our own names as a bundle.

    Args:
        out: the new folder.
        parts: tensors by file and name.
        arch: all sizes.
        llm_folder: the language model, with its tokenizer.
        llm: what is done with that folder, as in ``write_bundle``.
        reports: where the tensors came from.
        say: called with a line before each slow step.
    """
    with _appearing(out) as folder:
        files, tensors = {}, {}
        for name, state in parts.items():
            say(f"writing {name}")
            files[name] = _save(state, folder / name)
            header = read_header(folder / name)
            tensors[name] = {key: [info.dtype, *info.shape] for key, info in header.items()}
        say("hashing the language model")
        record = _take_llm(llm_folder, folder, llm)
        manifest = Manifest(arch, files, tensors, record, [_source(report) for report in reports])
        manifest.write(folder / BUNDLE_FILE)
        _sync(folder / BUNDLE_FILE)


def _import_all(sources: Sources) -> tuple[dict[str, State], list[KeyReport], Architecture]:
    """All tensors under our names, what became of the sources' keys, and the sizes."""
    llm_config = read_llm_config(sources.llm)
    vit = _open(sources.vit)
    same = sources.qformer == sources.vit
    qformer = vit if same else _open(sources.qformer) if sources.qformer else None
    arch = sources.architecture or _beside(sources.vit) or _architecture(vit, qformer)
    arch = arch.with_llm_dim(llm_width(llm_config, sources.llm))
    if arch.qformer and qformer is None:
        raise WeightsError("the architecture has a Q-Former, but no file for it was given")
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
        connector, connector_report = identity_connector(arch)
    parts = {"vision.safetensors": vision, "connector.safetensors": connector}
    reports = [vision_report, connector_report]
    if sources.projector:
        path = sources.projector
        projector, report = import_projector(read_tensors(path), str(path))
        require_projector_fits(arch, arch.llm_dim or 0, tuple(projector["weight"].shape), str(path))
        parts["projector.safetensors"] = {f"llama_proj.{k}": t for k, t in projector.items()}
        reports.append(report)
    return parts, reports, arch


def _open(path: Path) -> State | Blip2Folder:
    return open_blip2_folder(path) if path.is_dir() else read_tensors(path)


def _beside(vit: Path) -> Architecture | None:
    """Sizes in an architecture.json beside the file, for models whose shapes do not tell them."""
    file = vit.parent / ARCHITECTURE_FILE
    return Architecture.from_file(file) if vit.is_file() and file.is_file() else None


def _architecture(vit: State | Blip2Folder, qformer: State | Blip2Folder | None) -> Architecture:
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


@contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its name at the end, or vanishes."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.tmp-{uuid.uuid4().hex[:8]}")
    folder.mkdir()
    try:
        yield folder
        _sync(folder)
        folder.rename(out)
        _sync(out.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _save(state: State, path: Path) -> FileRecord:
    from safetensors.torch import save_file

    save_file({key: tensor.contiguous() for key, tensor in state.items()}, path)
    _sync(path)
    return FileRecord.of(path)


def _take_llm(source: Path, folder: Path, mode: LlmMode) -> LlmRecord:
    """Refer to the language model's folder, or take what defines it; never its code."""
    if mode == "refer":
        files = {path.name: FileRecord.of(path) for path in llm_files(source)}
        return LlmRecord(str(source.resolve()), False, files)
    target = folder / "llm"
    if mode == "move":
        source.rename(target)
        return LlmRecord("llm", True, {p.name: FileRecord.of(p) for p in llm_files(target)})
    target.mkdir()
    for path in llm_files(source) + companion_files(source):
        shutil.copyfile(path, target / path.name)
        _sync(target / path.name)
    return LlmRecord("llm", True, {p.name: FileRecord.of(p) for p in llm_files(target)})


def _source(report: KeyReport) -> dict[str, object]:
    """A key report with the hashes of the files that it is about."""
    path = Path(report.source) if report.source else None
    files: list[Path] = []
    if path is not None:
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    hashes = {p.name: {"num_bytes": p.stat().st_size, "blake2b": full_hash(p)} for p in files}
    return report.to_dict() | {"files": hashes}


def _sync(path: Path) -> None:
    """Make a file or folder survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

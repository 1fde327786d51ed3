"""Look a bundle over before a night in the queue depends on it (``mgpt4 weights check``).

No model is built: shapes come from file headers, hashes from the files. All faults are listed
together.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle.bundle import original_digest, require_bundle
from mgpt4_hpc.model.bundle.manifest import BUNDLE_FILE, BundleManifest
from mgpt4_hpc.model.conversion.parts import gather, original_sources
from mgpt4_hpc.model.conversion.variants import input_words, llm_words, projector_faults
from mgpt4_hpc.model.estimates.memory import LlmSizes, MemoryEstimate, estimate_memory
from mgpt4_hpc.model.llm_files.check import LlmCheck, check_llm
from mgpt4_hpc.model.llm_files.folder import format_note, llm_files, original_format
from mgpt4_hpc.model.llm_files.tensors import is_plain_llama
from mgpt4_hpc.model.tower_shapes import Shapes, connector_shapes, vision_shapes
from mgpt4_hpc.model.weight_files.headers import TensorInfo, read_header
from mgpt4_hpc.model.weight_files.one_pass import (
    Reading,
    require_finite,
    require_finite_vectors,
    run_all,
)

_STAGES = {"stage1": (64, 1 + 32), "stage2": (12, 1 + 30 + 160)}
"""Rows per GPU in the original, and text tokens beside the image's: begin, prompt, answer."""

_SMALLER_BATCHES = (1, 4, 16)


@dataclass
class BundleCheck:
    """Findings about one bundle.

    Attributes:
        path: the folder.
        faults: what makes it unusable, each in words.
        notes: what is worth knowing.
        facts: sizes, variant, types, digest.
        memory: GiB per GPU, by stage, micro-batch and whether activations are recomputed.
    """

    path: Path
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    memory: list[dict[str, Any]] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether training can start from it."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {"ok": self.ok} | dataclasses.asdict(self) | {"path": str(self.path)}


def check_bundle(
    path: Path | str,
    *,
    full: bool = False,
    architecture: Architecture | None = None,
    torch_free: bool = False,
) -> BundleCheck:
    """Check a bundle of either kind (see ``bundle/bundle.py``).

    Args:
        path: the folder.
        full: read the language model completely too (gigabytes), not only samples of its files, and
            look for NaN and infinity in every tensor.
        architecture: as in ``open_bundle``.
        torch_free: as in ``check_llm``, where LLaMA's table of shapes is enough.
    """
    check = BundleCheck(Path(path))
    try:
        if (check.path / BUNDLE_FILE).exists():
            arch, llm_dir = _check_written(check, full)
        else:
            require_bundle(check.path)
            arch, llm_dir = _check_original(check, architecture, full)
    except WeightsError as error:
        check.faults.append(str(error))
        return check
    llm = check_llm(llm_dir, torch_free=torch_free)
    if torch_free and llm.config and not llm.faults and not is_plain_llama(llm.config, llm_dir):
        llm = check_llm(llm_dir)  # of the original's own files nothing has asked transformers yet
    check.faults += llm.faults
    check.notes += llm.notes
    if note := format_note(llm_dir, original_format(arch)):
        check.notes.append(note)
    _describe(check, arch, llm_dir, llm)
    if llm.width and llm.num_parameters:
        check.memory = _memory_table(arch.with_llm_dim(llm.width), llm)
    return check


def _check_written(check: BundleCheck, full: bool) -> tuple[Architecture, Path]:
    """Hashes and shapes of a bundle that an import wrote."""
    manifest = BundleManifest.read(check.path / BUNDLE_FILE)
    arch, llm_dir = manifest.architecture, manifest.llm_dir(check.path)
    check.faults += manifest.faults(check.path) or _read_through(check.path, manifest, full)
    if not manifest.finite_checked and not full:
        check.notes.append(
            "the import did not look for NaN and infinity, and this check not in the language "
            "model's matrices: `mgpt4 weights check --full` does"
        )
    tables: dict[str, dict[str, TensorInfo]] = {}
    for name in manifest.files:
        try:
            tables[name] = read_header(check.path / name)
        except WeightsError as error:
            check.faults.append(str(error))
    position = tables.get("vision.safetensors", {}).get("pos_embed")
    grid = round((position.shape[1] - 1) ** 0.5) if position else None
    for name, expected in (
        ("vision.safetensors", vision_shapes(arch, grid=grid)),
        ("connector.safetensors", connector_shapes(arch)),
    ):
        if name in tables:
            check.faults += _shape_faults(name, tables[name], expected)
    check.facts["digest"] = manifest.digest
    check.facts["dtypes"] = {n: sorted({i.dtype for i in t.values()}) for n, t in tables.items()}
    projector = tables.get("projector.safetensors", {}).get("llama_proj.weight")
    check.facts["projector"] = list(projector.shape) if projector else None
    return arch, llm_dir


def _read_through(folder: Path, manifest: BundleManifest, full: bool) -> list[str]:
    """Faults of the bundle's own bytes; ``full``: of the language model's too.

    NaN and infinity are looked for with ``full``, and where the import did not.
    """
    records = {folder / name: record for name, record in manifest.files.items()}
    finite = full or not manifest.finite_checked
    if full:
        llm_dir = manifest.llm_dir(folder)
        records |= {llm_dir / name: record for name, record in manifest.llm.files.items()}
    try:
        readings = [Reading(path, _tensors(path) if finite else {}) for path in records]
        run_all([[reading] for reading in readings], finite=finite)
        changed = [r for r in readings if r.blake2b != records[r.path].blake2b]
        if not changed:
            require_finite(readings)
    except (WeightsError, OSError) as error:
        return [str(error)]
    return [f"{reading.path} has changed since it was imported" for reading in changed]


def _tensors(path: Path) -> dict[str, TensorInfo]:
    return read_header(path) if path.suffix in (".safetensors", ".bin") else {}


def _check_original(
    check: BundleCheck, architecture: Architecture | None, full: bool
) -> tuple[Architecture, Path]:
    """Keys, shapes and numbers of a folder of the original's files; ``full``: all its numbers."""
    sources = original_sources(check.path, architecture)
    parts = gather(sources, read_header, lambda count, _value: TensorInfo("F32", (count,), 0))
    check.facts["digest"] = original_digest(sources)
    check.facts["dtypes"] = {
        name: sorted({info.dtype for info in state.values()})
        for name, state in (("vision", parts.vision), ("connector", parts.connector))
    }
    shape = parts.projector["weight"].shape if parts.projector else None
    check.facts["projector"] = list(shape) if shape else None
    files: dict[Path, dict[str, TensorInfo]] = {}
    states = (parts.vision, parts.connector, parts.projector or {})
    for report, state in zip(parts.reports, states, strict=False):
        for key, info in state.items():
            files.setdefault(info.file, {})[report.used.get(key, key)] = info
    for tensors in files.values():
        require_finite_vectors(tensors)
    if full:
        files |= {path: _tensors(path) for path in llm_files(sources.llm)}
        readings = [Reading(path, tensors) for path, tensors in files.items() if path != Path()]
        run_all([[reading] for reading in readings], finite=True)
        require_finite(readings)
    else:
        check.notes.append(
            "NaN and infinity were looked for in norms and biases only: `mgpt4 weights import`, or "
            "`mgpt4 weights check --full`, looks at every tensor"
        )
    return parts.architecture, sources.llm


def _describe(check: BundleCheck, arch: Architecture, llm_dir: Path, llm: LlmCheck) -> None:
    """Facts, whether the projector fits both ends, and hints about known mix-ups."""
    check.facts |= {
        "architecture": arch.to_dict(),
        "vision_side": input_words(arch.projector_in),
        "llm": {
            "path": str(llm_dir),
            "model": llm_words(llm.width),
            "parameters": llm.num_parameters,
            "dtypes": llm.dtypes,
            "vocab_size": llm.vocab_size,
        },
    }
    if llm.width and check.facts["projector"]:
        shape = tuple(check.facts["projector"])
        check.faults += projector_faults(arch, llm.width, shape)
    if arch.qformer and llm.width in (4096, 5120) and llm.vocab_size == 32000:
        check.notes.append(
            "the vocabulary has 32,000 tokens: Vicuna v0, which the published projectors with "
            "Q-Former belong to, has 32,001; with a later Vicuna they give garbage"
        )


def _memory_table(arch: Architecture, llm: LlmCheck) -> list[dict[str, Any]]:
    rows = []
    for stage, (original_batch, text_tokens) in _STAGES.items():
        for batch in sorted({*_SMALLER_BATCHES, original_batch}):
            for recompute in (False, True):
                estimate = estimate_memory(
                    arch,
                    LlmSizes(llm.config, llm.num_parameters),
                    micro_batch_size=batch,
                    text_tokens=text_tokens,
                    activation_checkpointing=recompute,
                )
                rows.append(_memory_row(stage, batch, recompute, estimate))
    return rows


def _memory_row(stage: str, batch: int, recompute: bool, of: MemoryEstimate) -> dict[str, Any]:
    parts = {f"{name}_gib": round(value, 1) for name, value in dataclasses.asdict(of).items()}
    return {
        "stage": stage,
        "micro_batch_size": batch,
        "activation_checkpointing": recompute,
        "total_gib": round(of.total, 1),
    } | parts


def _shape_faults(name: str, held: dict[str, TensorInfo], expected: Shapes) -> list[str]:
    faults = [f"{name} lacks {key}" for key in expected if key not in held]
    faults += [f"{name} has an unknown tensor {key}" for key in held if key not in expected]
    faults += [
        f"{name}: {key} is {held[key].shape}, expected {shape}"
        for key, shape in expected.items()
        if key in held and held[key].shape != shape
    ]
    return faults

"""Whether the model fits on the GPUs that a job will get: an estimate against a table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.formatting import first_line
from mgpt4_hpc.model.bundle.manifest import BUNDLE_FILE, BundleManifest
from mgpt4_hpc.model.estimates.memory import GIB, LlmSizes, MemoryEstimate, count, estimate_memory
from mgpt4_hpc.model.weight_files.headers import read_header
from mgpt4_hpc.text_files import parse_json

_SIZES_GIB: tuple[tuple[str, tuple[int, ...]], ...] = (
    ("gh200", (96, 144)),
    ("gb200", (186,)),
    ("b200", (180,)),
    ("h200", (141,)),
    ("h100", (80, 94)),
    ("a100", (40, 80)),
    ("a40", (48,)),
    ("a30", (24,)),
    ("a10", (24,)),
    ("a6000", (48,)),
    ("l40s", (48,)),
    ("l40", (48,)),
    ("l4", (24,)),
    ("v100", (16, 32)),
    ("p100", (16,)),
    ("t4", (16,)),
    ("6000_ada", (48,)),
    ("6000ada", (48,)),
    ("rtx_6000", (24,)),
    ("rtx6000", (24,)),
    ("rtx8000", (48,)),
    ("4090", (24,)),
    ("3090", (24,)),
)
"""Sizes in which NVIDIA sells them (its data sheets); the first name that fits counts."""

_SAID = re.compile(r"(?<!\d)(\d{2,3})_?-?(?:gb?|gib)?(?![\da-z])", re.IGNORECASE)
_SLICE = re.compile(r"\d+g\.(\d+)gb", re.IGNORECASE)
"""A part of a GPU (MIG), as ``a100_3g.20gb``."""
_UNSURE = 1.2
"""The estimate is good to about a fifth (``model/estimates/memory.py``)."""

_PROMPT_TOKENS = {1: 1, 2: 31}
"""Tokens beside image and answer: begin, and stage 2's instruction."""


def sizes_gib(gpu_type: str, hints: Iterable[str] = ()) -> tuple[int, ...]:
    """Memory that a GPU of this type may have, ascending; empty if the name says nothing.

    Args:
        gpu_type: as gres has it: ``a100``, ``nvidia_a100-sxm4-80gb``.
        hints: further names, as of node features: ``a100_80g``.
    """
    name = gpu_type.lower()
    if part_of_one := _SLICE.search(name):
        return (int(part_of_one[1]),)
    known = next((sizes for part, sizes in _SIZES_GIB if _has_word(name, part)), ())
    for text in (name, *(hint.lower() for hint in hints)):
        said = {int(number) for number in _SAID.findall(text)}
        if match := tuple(size for size in known if size in said):
            return match
    return known


def _has_word(name: str, part: str) -> bool:
    """An ``a40`` is no part of an ``rtx_a4000``."""
    return re.search(rf"{re.escape(part)}(?!\d)", name) is not None


def estimate(config: RunConfig) -> MemoryEstimate | None:
    """What one rank takes; None where the weights are no bundle or the device no GPU."""
    manifest_file = Path(config.model.weights) / BUNDLE_FILE
    if config.train.device == "cpu" or not manifest_file.is_file():
        return None
    manifest = BundleManifest.read(manifest_file)
    llm = manifest.llm_dir(Path(config.model.weights))
    try:
        llm_config = parse_json((llm / "config.json").read_text(encoding="utf-8"))
        width = int(llm_config["hidden_size"])
        parameters = _count_parameters(llm, manifest)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    memory = estimate_memory(
        manifest.architecture.with_llm_dim(width),
        LlmSizes(llm_config, parameters),
        micro_batch_size=config.train.micro_batch_size,
        text_tokens=_PROMPT_TOKENS[config.stage] + config.max_answer_tokens,
        precision="fp32" if config.model.precision == "fp32" else "bf16",
        activation_checkpointing=config.model.activation_checkpointing,
        sharded_over=config.launch.gpus if config.model.shard_llm else 1,
    )
    if config.model.llm_8bit:
        saved = parameters / GIB  # one byte of two
        memory = MemoryEstimate(memory.weights - saved, memory.trained, memory.activations)
    return memory


def _count_parameters(llm: Path, manifest: BundleManifest) -> int:
    files = manifest.llm.files
    held = sum(
        count({key: info.shape for key, info in read_header(llm / name).items()})
        for name in files
        if name.endswith(".safetensors")
    )
    return held or sum(r.num_bytes for name, r in files.items() if name.endswith(".bin")) // 2


def memory_findings(
    config: RunConfig, gpu_types: Iterable[str], hints: Iterable[str]
) -> tuple[list[str], list[str]]:
    """Faults and notes about the estimate against the GPUs that the job may get.

    Args:
        config: of the run.
        gpu_types: any of which the job may get.
        hints: texts that may name a type's size, as the constraint.
    """
    try:
        memory = estimate(config)
    except MgptError as error:
        return [], [f"GPU memory was not looked at: {first_line(error.what)}"]
    sizes = {kind: sizes_gib(kind, hints) for kind in gpu_types}
    if memory is None or not sizes or not all(sizes.values()):
        return [], []
    largest = max(size for known in sizes.values() for size in known)
    smallest = min(size for known in sizes.values() for size in known)
    text = (
        f"a rank needs about {memory.total:.0f} GiB of GPU memory, {', '.join(sizes)} has "
        f"{smallest if smallest == largest else f'{smallest} to {largest}'}"
    )
    mend = (
        "lower train.micro_batch_size, set model.activation_checkpointing=1, model.llm_8bit=true "
        "or, on several GPUs, model.shard_llm=true"
    )
    if memory.total > largest * _UNSURE:
        return [f"{text}: {mend}"], []
    if memory.total > smallest:
        return [], [f"{text}: it may not fit; {mend}"]
    return [], []

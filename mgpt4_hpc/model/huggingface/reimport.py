"""Make a bundle of an exported folder again, with the projector that it was exported with."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle.bundle import Bundle
from mgpt4_hpc.model.bundle.manifest import EXPORT_FOLDER, EXPORT_RECORD
from mgpt4_hpc.model.bundle.writer import appearing, write_bundle
from mgpt4_hpc.model.conversion.parts import Sources
from mgpt4_hpc.model.huggingface.export import LANGUAGE
from mgpt4_hpc.model.huggingface.shards import WEIGHTS_FILE, Entry, stored, write_shards
from mgpt4_hpc.model.huggingface.tensors import without_last_row
from mgpt4_hpc.model.weight_files.headers import read_header
from mgpt4_hpc.text_files import parse_json

_PROJECTION = "language_projection."


def import_export(
    out: Path,
    folder: Path,
    *,
    finite: bool = True,
    say: Callable[[str], None] = lambda _line: None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> Bundle:
    """Write a bundle of what ``export_model`` wrote, bit for bit; arguments as ``write_bundle``'s.

    A LoRA that was merged stays part of the language model.

    Raises:
        WeightsError: if the folder is no export, or as ``write_bundle``.
    """
    record = _record(folder)
    if out.exists():
        raise WeightsError(f"{out} exists already", fix="choose another name, or remove it first")
    entries: dict[str, Entry] = {}
    for shard in sorted(folder.glob("*.safetensors")):
        entries |= {name: stored(info, name) for name, info in read_header(shard).items()}
    language = _part(entries, LANGUAGE)
    for name in record["with_image_row"]:
        language[name] = without_last_row(language[name])
    parts = out.with_name(f".{out.name}.parts")
    shutil.rmtree(parts, ignore_errors=True)  # of an import that was killed
    try:
        with appearing(parts, say) as new:
            say("taking the language model and the projector out")
            shutil.copytree(folder / EXPORT_FOLDER / "llm", new / "llm")
            write_shards(new / "llm", language, on_progress=on_progress)
            (new / "projector").mkdir()
            projector = _part(entries, _PROJECTION)
            write_shards(
                new / "projector", {f"llama_proj.{key}": e for key, e in projector.items()}
            )
        sources = Sources(
            vit=folder,
            qformer=folder,
            llm=parts / "llm",
            projector=parts / "projector" / WEIGHTS_FILE,
            architecture=Architecture.from_dict(record["architecture"], source=EXPORT_RECORD),
        )
        return write_bundle(
            out, sources, llm="move", finite=finite, say=say, on_progress=on_progress
        )
    finally:
        shutil.rmtree(parts, ignore_errors=True)


def _part(entries: dict[str, Entry], prefix: str) -> dict[str, Entry]:
    part = {k.removeprefix(prefix): e for k, e in entries.items() if k.startswith(prefix)}
    if not part:
        raise WeightsError(f"the folder has no tensors whose names begin with {prefix}")
    return part


def _record(folder: Path) -> dict[str, Any]:
    path = folder / EXPORT_FOLDER / EXPORT_RECORD
    try:
        record: dict[str, Any] = parse_json(path.read_text(encoding="utf-8"))
        if record["format"] != 1:
            raise ValueError(f"format {record['format']}")
        return {key: record[key] for key in ("architecture", "with_image_row")}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise WeightsError(
            f"{folder} is not what `mgpt4 weights export --format hf` wrote: cannot read {path} "
            f"({error})",
            fix="give that folder with its mgpt4/ subfolder; import others' BLIP-2 with --vit",
        ) from None

"""Write a bundle from other people's files (``mgpt4 weights import``).

Everything that headers can answer is checked before the first large read. Then each file is read
once. The folder appears under its name only when it is complete.
"""

from __future__ import annotations

import errno
import fcntl
import shutil
import struct
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from mgpt4_hpc.disk import fsync_file, fsync_folder
from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle.bundle import Bundle, open_bundle
from mgpt4_hpc.model.bundle.manifest import BUNDLE_FILE, BundleManifest, LlmRecord
from mgpt4_hpc.model.bundle.projector_origin import other_llm_note
from mgpt4_hpc.model.conversion.importer import KeyReport
from mgpt4_hpc.model.conversion.parts import Parts, Sources, gather
from mgpt4_hpc.model.conversion.vicuna_delta import merge_vicuna_delta
from mgpt4_hpc.model.llm_files.check import check_llm, read_stored
from mgpt4_hpc.model.llm_files.folder import (
    companion_files,
    format_note,
    llm_files,
    original_format,
)
from mgpt4_hpc.model.llm_files.tokenizer import load_tokenizer
from mgpt4_hpc.model.weight_files.fingerprint import WeightFileRecord, fingerprint
from mgpt4_hpc.model.weight_files.headers import TensorInfo, read_header
from mgpt4_hpc.model.weight_files.one_pass import (
    Layout,
    Output,
    Reading,
    is_finite,
    lay_out,
    require_finite,
    run_all,
    tensor_info,
)
from mgpt4_hpc.model.weight_files.untrusted_files import read_tensors

Say = Callable[[str], None]
OnProgress = Callable[[int, int], None]
LlmMode = Literal["refer", "copy", "move"]

_LOCK = ".lock"
_FULL = (errno.ENOSPC, errno.EDQUOT)


def write_bundle(
    out: Path,
    sources: Sources,
    *,
    llm: LlmMode = "refer",
    finite: bool = True,
    say: Say = lambda _line: None,
    on_progress: OnProgress = lambda _done, _total: None,
) -> Bundle:
    """Import, check, write, and open what was written.

    Args:
        out: the new folder; it must not exist.
        sources: the files.
        llm: refer to the language model's folder where it is, copy it into the bundle, or move it;
            one that is merged with a base becomes part of the bundle in any case.
        finite: look for NaN and infinity in every tensor.
        say: called with a line before each slow step.
        on_progress: called with the bytes read, and those in all.

    Raises:
        WeightsError: on anything missing, broken, unexplained or unfitting, on NaN and infinity, or
            without room for the bundle; nothing is left behind.
    """
    if out.exists():
        raise WeightsError(f"{out} exists already", fix="choose another name, or remove it first")
    say("reading the headers")
    parts = gather(sources, read_header, _constant)
    files = _resolved({
        "vision.safetensors": (parts.vision, parts.reports[0]),
        "connector.safetensors": (parts.connector, parts.reports[1]),
        **({"projector.safetensors": (
            {f"llama_proj.{key}": info for key, info in parts.projector.items()}, parts.reports[2]
        )} if parts.projector else {}),
    })  # fmt: skip
    if sources.base is None:
        _require_sound(sources.llm)
    else:
        load_tokenizer(sources.llm)  # the rest is checked of the sum
    copied = llm_files(sources.llm) if sources.base is not None or llm == "copy" else []
    _require_room(out, files, copied)
    with appearing(out, say) as folder:
        merged: dict[str, WeightFileRecord] | None = None
        if sources.base is not None:
            merged = merge_vicuna_delta(
                sources.base, sources.llm, folder / "llm", finite=finite, say=say
            )
            _require_sound(folder / "llm")
        say("reading the weights: hashing, checking, copying")
        _write_all(folder, _Plan(parts, files, sources.llm, llm, merged, finite), on_progress)
    if sources.base is None and llm == "move":
        sources.llm.rename(out / "llm")  # last: a killed call can be finished, see fetch.py
    bundle = open_bundle(out)
    if note := format_note(bundle.llm_dir, original_format(bundle.architecture)):
        say(f"note: {note}")
    if sources.projector and (note := other_llm_note(sources.projector, out)):
        say(f"note: {note}")
    return bundle


def _require_sound(llm_dir: Path) -> None:
    """Raises WeightsError with everything that ``check_llm`` finds."""
    faults = check_llm(llm_dir).faults
    if faults:
        raise WeightsError("the language model cannot be used:\n" + "\n".join(faults))


def _constant(count: int, value: float) -> TensorInfo:
    data = struct.pack("<f", value) * count
    return TensorInfo("F32", (count,), len(data), data=data)


@dataclass(frozen=True)
class _Plan:
    """What goes into the bundle.

    Attributes:
        parts: architecture and reports.
        files: the bundle's own files, each with its tensors.
        llm_dir: the language model's folder.
        llm: what is done with it.
        merged: records of the language model's weights where they were just written; else None.
        finite: look for NaN and infinity.
    """

    parts: Parts
    files: Mapping[str, Mapping[str, TensorInfo]]
    llm_dir: Path
    llm: LlmMode
    merged: Mapping[str, WeightFileRecord] | None
    finite: bool


def _write_all(folder: Path, plan: _Plan, on_progress: OnProgress) -> None:
    """Read every source once and write the bundle's files and ``bundle.json``."""
    layouts = {name: lay_out(tensors) for name, tensors in plan.files.items()}
    outputs = {name: Output(folder / name) for name in plan.files}
    for name, layout in layouts.items():
        outputs[name].write(layout.header)
        _write_from_memory(outputs[name], plan, name, layout.before)
    vision_side = _vision_readings(plan, layouts, outputs)
    language, llm_outputs = _llm_readings(folder, plan)
    chains = [*vision_side.values(), *([reading] for reading in language.values())]
    run_all(chains, finite=plan.finite, on_progress=on_progress)
    require_finite(reading for chain in chains for reading in chain)
    records = {}
    for name, layout in layouts.items():
        _write_from_memory(outputs[name], plan, name, layout.after)
        records[name] = outputs[name].close()
    llm_records = {
        name: llm_outputs[name].close() if name in llm_outputs else _record(reading)
        for name, reading in language.items()
    }
    inside = plan.llm != "refer" or plan.merged is not None
    manifest = BundleManifest(
        plan.parts.architecture,
        records,
        {name: {key: [info.dtype, *info.shape] for key, info in tensors.items()}
         for name, tensors in plan.files.items()},
        LlmRecord("llm" if inside else str(plan.llm_dir.resolve()), inside,
                  {**llm_records, **(plan.merged or {})}),
        [_source(report, vision_side) for report in plan.parts.reports],
        plan.finite,
    )  # fmt: skip
    manifest.write(folder / BUNDLE_FILE)
    fsync_file(folder / BUNDLE_FILE)


def _write_from_memory(output: Output, plan: _Plan, name: str, keys: Sequence[str]) -> None:
    for key in keys:
        info = plan.files[name][key]
        data = info.data if info.data is not None else info.read()
        if plan.finite and not is_finite(data, info.dtype):
            raise WeightsError(
                f"{info.file or name}: {key} holds NaN or infinity", fix="download the file again"
            )
        output.write(data)


def _vision_readings(
    plan: _Plan, layouts: Mapping[str, Layout], outputs: Mapping[str, Output]
) -> dict[str, list[Reading]]:
    """Per source, the readings of its files: one chain, as they may append to one output."""
    readings: dict[str, dict[Path, Reading]] = {}
    for report, (name, tensors) in zip(plan.parts.reports, plan.files.items(), strict=True):
        copied = set(layouts[name].copied)
        for key, info in tensors.items():
            if info.file == Path() or not report.source:
                continue
            chain = readings.setdefault(report.source, {})
            reading = chain.setdefault(info.file, Reading(info.file, {}, {}))
            theirs = report.used.get(key.removeprefix("llama_proj."), key)
            unique = theirs if theirs not in reading.tensors else f"{theirs} ({key})"
            reading.tensors[unique] = info  # type: ignore[index]
            if key in copied:
                reading.outputs[unique] = outputs[name]  # type: ignore[index]
    return {source: [chain[path] for path in sorted(chain)] for source, chain in readings.items()}


def _llm_readings(folder: Path, plan: _Plan) -> tuple[dict[str, Reading], dict[str, Output]]:
    """Readings of the language model's files, and the outputs of those that are copied."""
    outputs: dict[str, Output] = {}
    if plan.merged is not None:
        target = folder / "llm"
        others = [path for path in llm_files(target) if path.name not in plan.merged]
        return {path.name: Reading(path) for path in others}, outputs
    files = llm_files(plan.llm_dir)
    if plan.llm == "copy":
        target = folder / "llm"
        target.mkdir()
        outputs = {path.name: Output(target / path.name) for path in files}
        for path in companion_files(plan.llm_dir):
            shutil.copyfile(path, target / path.name)
            fsync_file(target / path.name)
    readings = {}
    for path in files:
        weights = path.suffix in (".safetensors", ".bin")
        tensors = read_stored(path) if weights else {}
        readings[path.name] = Reading(path, tensors, whole=outputs.get(path.name))
    return readings, outputs


def _record(reading: Reading) -> WeightFileRecord:
    path = reading.path
    return WeightFileRecord(path.stat().st_size, reading.blake2b, fingerprint(path))


def _source(report: KeyReport, chains: Mapping[str, Sequence[Reading]]) -> dict[str, Any]:
    """A key report with the hashes of the files that were read for it."""
    hashes = {
        reading.path.name: {
            "num_bytes": reading.path.stat().st_size, "blake2b": reading.blake2b,
        }
        for reading in chains.get(report.source, ())
    }  # fmt: skip
    return asdict(report) | {"files": hashes}


def _resolved(
    files: Mapping[str, tuple[Mapping[str, TensorInfo], KeyReport]],
) -> dict[str, dict[str, TensorInfo]]:
    """Tensors that are not contiguous in their file, read by torch into memory."""
    parts: dict[str, dict[str, TensorInfo]] = {}
    for name, (tensors, report) in files.items():
        parts[name] = dict(tensors)
        for key, info in tensors.items():
            if info.start is None and info.data is None:
                theirs = report.used[key.removeprefix("llama_proj.")]
                whole = tensor_info(read_tensors(info.file)[theirs])
                parts[name][key] = replace(info, data=whole.data)
    return parts


def save_parts(
    out: Path, parts: Mapping[str, Mapping[str, Any]], arch: Architecture, llm_folder: Path
) -> None:
    """Write torch tensors under our own names as a bundle that refers to a language model.

    Args:
        out: the new folder.
        parts: tensors by file and name.
        arch: all sizes.
        llm_folder: the language model, with its tokenizer.
    """
    files = {
        name: {key: tensor_info(tensor) for key, tensor in state.items()}
        for name, state in parts.items()
    }
    reports = tuple(KeyReport("") for _ in files)
    whole = Parts({}, {}, None, reports, arch)
    with appearing(out, lambda _line: None) as folder:
        _write_all(folder, _Plan(whole, files, llm_folder, "refer", None, True), lambda *_: None)


def _require_room(
    out: Path, files: Mapping[str, Mapping[str, TensorInfo]], copied: Sequence[Path]
) -> None:
    """Raises WeightsError where the file system has fewer free bytes than the bundle takes."""
    needed = sum(info.num_bytes for tensors in files.values() for info in tensors.values())
    needed += sum(path.stat().st_size for path in copied)
    advice = "; without --copy the language model stays where it is" if copied else ""
    require_free(out.parent, needed, advice)


def require_free(folder: Path, needed: int, advice: str = "") -> None:
    """Raises WeightsError where the file system has fewer free bytes than are needed."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise WeightsError(
            f"{folder} has {free:,} bytes free, the bundle takes {needed:,}",
            fix=f"free some space, or give --out on another file system{advice}",
        )


@contextmanager
def appearing(out: Path, say: Say) -> Iterator[Path]:
    """A temporary folder beside ``out`` that takes its name at the end, or vanishes.

    It is locked while it is written, so that the next import knows what a killed one left.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_left_over(out, say)
    folder = out.with_name(f".{out.name}.tmp-{uuid.uuid4().hex[:8]}")
    try:
        folder.mkdir()
        with (folder / _LOCK).open("xb") as lock:
            with suppress(OSError):  # Lustre without -o flock
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield folder
            (folder / _LOCK).unlink()
            fsync_folder(folder)
            folder.rename(out)
            fsync_folder(out.parent)
    except OSError as error:
        fix = "free some space, or give --out on another file system"
        raise WeightsError(
            f"cannot write {out}: {error.strerror or error}",
            fix=fix if error.errno in _FULL else "see what the file system says of that folder",
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left_over(out: Path, say: Say) -> None:
    """Remove the folders of imports to ``out`` that were killed, and name those that may live.

    Raises:
        WeightsError: if an import to the same place is at work.
    """
    for folder in sorted(out.parent.glob(f".{out.name}.tmp-*")):
        try:
            with (folder / _LOCK).open("rb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
                say(f"removed {folder}, which an import that was killed had left")
        except BlockingIOError:
            raise WeightsError(
                f"another import writes {out} (in {folder})", fix="wait for it, or stop it"
            ) from None
        except OSError as error:
            say(f"{folder} may be left of an import that was killed: remove it ({error.strerror})")

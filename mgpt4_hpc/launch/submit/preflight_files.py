"""Whether the files that a job reads are there and what they should be. Torch-free."""

from __future__ import annotations

import tarfile
from pathlib import Path

from mgpt4_hpc.checkpoint.manifest import Manifest as CheckpointManifest
from mgpt4_hpc.checkpoint.manifest import file_name, new_hash
from mgpt4_hpc.config.missing_inputs import missing_start
from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.config.schema import LoraConfig, RunConfig, SourceConfig
from mgpt4_hpc.config.streams import is_url, stream_faults
from mgpt4_hpc.data.index.left_out import LeftOut, add_up, in_words
from mgpt4_hpc.data.index.shard_list import expand_shards, expand_urls, left_out_of_folders
from mgpt4_hpc.data.sources.pack import is_align_folder, left_out_of_align
from mgpt4_hpc.errors import FaultList, MgptError
from mgpt4_hpc.formatting import beside, counted
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle.manifest import BUNDLE_FILE, BundleManifest
from mgpt4_hpc.model.bundle.projector_origin import other_llm_note
from mgpt4_hpc.model.conversion.parts import LLM_FOLDER
from mgpt4_hpc.model.conversion.variants import (
    OTHER_PROJECTOR,
    VARIANTS,
    find_variant,
    projector_faults,
    require_variant,
)
from mgpt4_hpc.model.estimates.bundle_check import check_bundle
from mgpt4_hpc.model.llm_files.check import check_llm
from mgpt4_hpc.model.llm_files.folder import format_note, own_chat_template, read_llm_config
from mgpt4_hpc.model.weight_files.headers import read_header
from mgpt4_hpc.model.weight_files.one_pass import require_finite_vectors
from mgpt4_hpc.prompts import MODEL_TEMPLATE, TEMPLATES
from mgpt4_hpc.run_dir import RunDir, read_json

_SHOWN = 3
_OPENED = 100
"""Most shards of a source that are opened to find one that is a tar: seconds on a slow storage."""
_SEARCHED = 1024 * 1024
_BEGINNING = 15
"""Bytes that show what a file is: ``<!DOCTYPE html>``."""
_SPARE_TOKENS = 64
"""Tokens that copies of one language model add to its vocabulary, as Vicuna v0 its padding."""


def weights_findings(config: RunConfig) -> tuple[list[str], Architecture | None]:
    """Faults of the bundle, and its sizes where they are known."""
    weights = config.model.weights
    if not weights:
        return [], None  # reported already
    folder = Path(weights)
    if not folder.exists():
        near = beside(folder)
        return [
            f"model.weights {weights} is no folder{near}: if it was moved, "
            "--set model.weights=NEW; `mgpt4 weights import` makes one"
        ], None
    try:
        if not (folder / BUNDLE_FILE).exists():
            check = check_bundle(folder, torch_free=True)
            sizes = None
            if "architecture" in check.facts:
                sizes = Architecture.from_dict(check.facts["architecture"])
                require_variant(config.model.variant, sizes, weights)
            faults = [f"model.weights: {fault}" for fault in check.faults]
            faults += _other_llm_faults(config, sizes, folder / LLM_FOLDER)
            return faults, None if faults else sizes
        manifest = BundleManifest.read(folder / BUNDLE_FILE)
        require_variant(config.model.variant, manifest.architecture, weights)
        # Sizes and samples of each file: the towers' shapes were checked when it was imported.
        llm_dir = manifest.llm_dir(folder)
        faults = manifest.faults(folder) or check_llm(llm_dir, torch_free=True).faults
        if not faults and not manifest.finite_checked:
            for name in manifest.files:
                require_finite_vectors(read_header(folder / name))
        faults = [f"model.weights: {fault}" for fault in faults]
        faults += _other_llm_faults(config, manifest.architecture, llm_dir)
        return [*faults, *_template_faults(config, llm_dir)], manifest.architecture
    except MgptError as error:
        return [f"{error.what} ({error.fix})" if error.fix else error.what], None


def _other_llm_faults(config: RunConfig, sizes: Architecture | None, llm_dir: Path) -> list[str]:
    """Whether a language model has only the width of the one that the settings are for."""
    wanted = VARIANTS.get(config.model.variant)
    if wanted is None or sizes is None or find_variant(sizes) != wanted:
        return []
    try:
        llm = read_llm_config(llm_dir)
    except MgptError:
        return []  # reported already
    others = [
        f"{key} {llm[key]} instead of {size}"
        for key, size in wanted.llm_config.items()
        if isinstance(size, int)
        and isinstance(llm.get(key), int)
        and abs(llm[key] - size) > (_SPARE_TOKENS if key == "vocab_size" else 0)
    ]
    if not others:
        return []
    return [
        f"model.weights: these settings are for {wanted.name}, and the language model in {llm_dir} "
        f"is another one ({', '.join(others)}): use --set model.variant=any, and as text.template "
        "the conversation format of that model"
    ]


def _template_faults(config: RunConfig, llm_dir: Path) -> list[str]:
    """Whether a chat template that the run is to use is there; only the job can render it."""
    if config.template.name != MODEL_TEMPLATE.name or own_chat_template(llm_dir):
        return []
    return [
        f"text.template is model, and the tokenizer in {llm_dir} has no chat template: set it to "
        f"{', '.join(TEMPLATES)}, or set text.prompt and text.end_symbol"
    ]


def template_notes(config: RunConfig) -> list[str]:
    """That the run speaks to its language model in another model's format."""
    folder = Path(config.model.weights)
    try:
        llm_dir = BundleManifest.read(folder / BUNDLE_FILE).llm_dir(folder)
    except MgptError:
        llm_dir = folder / "llm"  # of the original's own files
    note = format_note(llm_dir, config.template.name)
    return [note] if note else []


def source_findings(config: RunConfig) -> tuple[list[str], list[str]]:
    """Faults of sources, and notes on what lies there and will not be read.

    A fault is a missing shard, an index that does not match, a pattern without sense, or shards
    that are no tars. What the tars themselves hold is known here only where there is an index.
    """
    faults, notes = stream_faults(config), []
    for source in config.data.sources:
        source_faults: list[str] = []
        left_out: list[LeftOut] = []
        try:
            if is_url(source.path):
                expand_urls(source.path)
            elif is_align_folder(Path(source.path)):
                left_out = left_out_of_align(Path(source.path))
            elif source.path:
                source_faults, left_out = _index_findings(source, expand_shards(source.path))
                left_out = [*left_out, *left_out_of_folders(source.path)]
        except MgptError as error:
            source_faults = [f"{error.what}; {error.fix}" if error.fix else error.what]
            if source.path and not Path(source.path).exists():
                source_faults[0] += f"; if it was moved, --set data.paths.{source.name}=NEW"
        faults += [f"data source {source.name}: {fault}" for fault in source_faults]
        if left_out:
            notes.append(f"data source {source.name}: left out: {in_words(left_out)}")
    if not faults:
        faults, held_out = _held_out_findings(config)
        notes += held_out
    return faults, notes


def _held_out_findings(config: RunConfig) -> tuple[list[str], list[str]]:
    """Faults, and how many samples ``data.val_fraction`` holds out of each source with an index.

    The sources have no faults of their own.
    """
    fraction = config.data.val_fraction
    indexed = [source for source in config.data.sources if source.index]
    if not fraction or not indexed:
        return [], []
    from mgpt4_hpc.data.sources.epochs import held_out

    parts = []
    try:
        for source in indexed:
            held, samples = held_out(source.name, str(source.index), fraction)
            parts.append(f"{held:,} of {samples:,} samples of {source.name}")
    except MgptError as error:
        faults = error.faults if isinstance(error, FaultList) else []
        return faults or [f"{error.what}; {error.fix}"], []
    return [], [f"held out (data.val_fraction {fraction:g}): {', '.join(parts)}"]


def _index_findings(source: SourceConfig, shards: list[Path]) -> tuple[list[str], list[LeftOut]]:
    if not source.index:
        return _header_findings(shards)  # it is made at the first start, of what is there then
    again = "make it again with `mgpt4 data index`"
    index_path = Path(source.index)
    if not index_path.exists():
        near = beside(index_path)
        return [f"the index {index_path} does not exist{near}: make it with `mgpt4 data index`"], []
    from mgpt4_hpc.data.index.index import ShardIndex

    index = ShardIndex.open(source.index)
    indexed = {index.shard_path(number).resolve() for number in range(index.num_shards)}
    present = {shard.resolve() for shard in shards}
    faults = [
        f"the index {source.index} {what} {counted(len(paths), 'shard')} ({_some(paths)}): {again}"
        for what, paths in (("lacks", present - indexed), ("also has", indexed - present))
        if paths
    ]
    if not faults and (changed := index.check_shards()):
        faults.append(
            f"{counted(len(changed), 'shard')} changed since indexing "
            f"({'; '.join(changed[:_SHOWN])}): {again}"
        )
    return faults, index.left_out


def _header_findings(shards: list[Path]) -> tuple[list[str], list[LeftOut]]:
    """A fault if no shard is a tar; the job leaves out those before the first that is."""
    wrong: list[LeftOut] = []
    for shard in shards[:_OPENED]:
        if not (why := _no_tar(shard)):
            return [], add_up(wrong)
        wrong.append(LeftOut(why, "", 1, str(shard)))
    return [f"no shard can be read: {in_words(add_up(wrong))}"], []


def _no_tar(shard: Path) -> str:
    """Why no member of this shard can be read; "" if its beginning is that of a tar."""
    try:
        with shard.open("rb") as file:
            block = file.read(tarfile.BLOCKSIZE)
            try:
                tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                # A good header behind a damaged one is found.
                return "" if b"ustar" in block + file.read(_SEARCHED) else _what_it_is(block)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    return ""


def _what_it_is(block: bytes) -> str:
    if not block:
        return "is empty"
    if not block.strip(b"\0"):
        return "is a tar without members"
    return f"is no tar, it begins with {block[:_BEGINNING]!r}"


def _some(paths: set[Path]) -> str:
    names = sorted(path.name for path in paths)
    return ", ".join(names[:_SHOWN]) + (" ..." if len(names) > _SHOWN else "")


def projector_findings(
    config: RunConfig, sizes: Architecture | None = None
) -> tuple[list[str], list[str]]:
    """Faults and notes about the projector to start from.

    Args:
        config: of the run.
        sizes: of its bundle, which the projector must fit; None if they are not known.
    """
    projector = config.model.projector
    if projector is None:
        return missing_start(config), []
    path = Path(projector)
    if not path.exists():
        return [
            f"model.projector {projector} does not exist{beside(path)}: if it was moved, "
            "--set model.projector=RUN|CHECKPOINT|FILE"
        ], []
    faults: list[str] = []
    notes: list[str] = []
    if (path / "run.json").exists():
        faults, notes, path = _run_findings(path)
    elif (path / "manifest.json").exists():
        fault = checkpoint_fault(path)
        faults = [f"model.projector {fault}"] if fault else []
    elif path.is_dir():
        faults = [f"model.projector {projector} is neither a run, a checkpoint nor a file"]
    if faults := faults or _width_faults(path, sizes):
        return faults, notes
    faults, more = start_findings(config, path)
    return faults, notes + more


def start_findings(config: RunConfig, start: Path) -> tuple[list[str], list[str]]:
    """Whether a run has what its first projector was trained with: language model and LoRA.

    Args:
        config: of the run.
        start: a run, a checkpoint's folder, or a file.
    """
    note = other_llm_note(start, Path(config.model.weights))
    notes = [f"model.projector: {note}"] if note else []
    lora = _trained_lora(start.parent if start.is_file() else start)
    if lora is None or not lora.rank:
        return [], notes
    wanted = (
        f"lora.rank={lora.rank}, lora.alpha={lora.alpha:g} and "
        f"lora.target_modules=[{','.join(lora.target_modules)}]"
    )
    if start.is_file():
        return [], [
            *notes,
            f"model.projector: the LoRA weights beside {start} are left out; to start from both "
            f"name the folder {start.parent}, with {wanted}",
        ]
    own = config.lora
    if (own.rank, {*own.target_modules}) == (lora.rank, {*lora.target_modules}):
        return [], notes
    return [f"model.projector: {start} was trained together with LoRA, and needs {wanted}"], notes


def _trained_lora(folder: Path) -> LoraConfig | None:
    """LoRA of a checkpoint, or of a run that has none yet; None if there is no record of it."""
    try:
        if (folder / "run.json").exists():
            return read_config(RunDir(folder).config_file).config.lora
        return LoraConfig(**read_json(folder / "manifest.json")["meta"]["lora"])
    except (MgptError, OSError, ValueError, KeyError, TypeError):
        return None


def _width_faults(path: Path, sizes: Architecture | None) -> list[str]:
    """Whether a checkpoint's or a file's projector fits the bundle; only its header is read."""
    if sizes is None or sizes.llm_dim is None:
        return []
    file = path / file_name("projector") if path.is_dir() else path
    try:
        header = read_header(file)
    except MgptError as error:
        return [f"model.projector: {error.what}"]
    shapes = [
        info.shape for name, info in header.items() if f".{name}".endswith(".llama_proj.weight")
    ]
    if not shapes:
        return [f"model.projector: {file} holds no llama_proj.weight"]
    if len(shapes[0]) != 2:
        return [f"model.projector: the llama_proj.weight in {file} is no matrix"]
    return [
        f"model.projector {path}: {fault}: {OTHER_PROJECTOR}, or set model.weights to its bundle"
        for fault in projector_faults(sizes, sizes.llm_dim, (shapes[0][0], shapes[0][1]))
    ]


def _run_findings(run: Path) -> tuple[list[str], list[str], Path]:
    """Faults, notes, and the newest checkpoint that verifies; one that does not is passed over."""
    steps = sorted(run.glob("checkpoints/step-*"), reverse=True)
    if not steps:
        fault = f"model.projector: the run {run} has no checkpoint yet: use --after {run.name}"
        return [fault], [], run
    damaged: list[str] = []
    for step in steps:
        fault = checkpoint_fault(step)
        if not fault:
            return [], [f"{damage}: {step.name} is taken instead" for damage in damaged], step
        damaged.append(f"model.projector: {fault}")
    return damaged, [], run


def checkpoint_fault(path: Path) -> str:
    """Why a checkpoint's projector is not what was saved; empty if it is. Megabytes are read."""
    try:
        manifest = CheckpointManifest.from_bytes((path / "manifest.json").read_bytes())
        record = manifest.files["projector"]
        data = (path / file_name("projector")).read_bytes()
    except MgptError as error:
        return f"{path}: {error.what}"
    except KeyError:
        return f"{path} holds no projector"
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    digest = new_hash()
    digest.update(data)
    if len(data) != record.size or digest.hexdigest() != record.blake2b:
        return f"{path} is damaged: its projector is not the one that was saved"
    return ""

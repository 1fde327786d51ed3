"""Is a language model's folder whole and consistent? Answered from headers, not from weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.llm_files.folder import (
    WEIGHT_FILES,
    llm_files,
    llm_width,
    read_llm_config,
    require_tokenizer_files,
    weight_map,
)
from mgpt4_hpc.model.llm_files.tensors import (
    Gaps,
    compare_by_loading,
    compare_with_llama,
    gap_faults,
    is_buffer,
    llama_shapes,
    quantized_fault,
)
from mgpt4_hpc.model.weight_files.headers import TensorInfo, read_header
from mgpt4_hpc.model.weight_files.one_pass import require_finite_vectors
from mgpt4_hpc.model.weight_files.torch_directory import flat_table, read_directory


@dataclass
class LlmCheck:
    """What was found in the folder.

    Attributes:
        config: ``config.json``; empty if it could not be read.
        width: of the hidden states; 0 if unknown.
        num_parameters: numbers in the weight files; 0 if unknown.
        dtypes: types of the weights, as safetensors names them.
        vocab_size: rows that the tokenizer needs; 0 if unknown.
        tensors: what the weight files hold, by name.
        faults, notes: what makes it unusable, and what is merely worth knowing.
    """

    config: dict[str, Any] = field(default_factory=dict)
    width: int = 0
    num_parameters: int = 0
    dtypes: list[str] = field(default_factory=list)
    vocab_size: int = 0
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def check_llm(folder: Path, *, torch_free: bool = False) -> LlmCheck:
    """Look at configuration, completeness, tensors and tokenizer, collecting every fault.

    Args:
        folder: in Hugging Face layout.
        torch_free: ask neither transformers nor the tokenizer, for a login node: tensors of
            families other than LLaMA are then not compared with config.json.
    """
    check = LlmCheck()
    try:
        _look_at_config(folder, check)
    except WeightsError as error:
        check.faults.append(str(error))
        return check
    for look in (_look_at_weights, _look_at_tokenizer):
        try:
            look(folder, check, torch_free)
        except WeightsError as error:
            check.faults.append(str(error))
    if not check.faults:
        check.faults += _tensor_faults(folder, check, torch_free)
    return check


def _look_at_config(folder: Path, check: LlmCheck) -> None:
    config = read_llm_config(folder)
    quantized = config.get("quantization_config")
    if quantized is not None or (folder / "quantize_config.json").is_file():
        method = quantized.get("quant_method", "") if isinstance(quantized, dict) else ""
        name = f"{folder / 'config.json'} has a quantization_config ({method or 'of some kind'})"
        check.faults.append(quantized_fault(name if quantized is not None else f"{folder} (GPTQ)"))
    check.width = llm_width(config, folder)
    check.config = config
    if config.get("model_type") == "llama":
        llama_shapes(config, folder)


def _look_at_weights(folder: Path, check: LlmCheck, _torch_free: bool) -> None:
    files = llm_files(folder)
    weights = [path for path in files if path.suffix in (".safetensors", ".bin")]
    tables = {path.name: read_stored(path) for path in weights}
    for table in tables.values():
        check.tensors |= table
    check.num_parameters = sum(
        math.prod(info.shape) for key, info in check.tensors.items() if not is_buffer(key)
    )
    check.dtypes = sorted({info.dtype for info in check.tensors.values()})
    for index in (path for path in files if path.name.endswith(".index.json")):
        _require_indexed(index, tables)
    if not any((folder / f"{name}{end}").is_file() for name in WEIGHT_FILES
               for end in ("", ".index.json")):  # fmt: skip
        raise WeightsError(
            f"{folder} has {', '.join(path.name for path in weights[:4])}, but neither "
            f"{' nor '.join(WEIGHT_FILES)} nor an index of either",
            why="transformers finds a model's weights by these names",
            fix=f"download {WEIGHT_FILES[0]}.index.json too, or rename a single file",
        )
    if not check.tensors:
        raise WeightsError(
            f"{', '.join(map(str, weights[:4]))} holds no tensors", fix="download it again"
        )


def read_stored(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one of the model's weight files, which must hold nothing else.

    Raises:
        WeightsError: as ``read_header``, and if the file is a training checkpoint.
    """
    if path.suffix == ".safetensors":
        return read_header(path)
    content = read_directory(path)
    table = flat_table(content)
    if table is None:
        names = ", ".join(str(key) for key in list(content)[:4])
        raise WeightsError(
            f"{path} is a training checkpoint (it holds {names}), not a model's weights",
            fix="save the model alone, with save_pretrained",
        )
    return table


def _require_indexed(index: Path, tables: Mapping[str, Mapping[str, TensorInfo]]) -> None:
    """Every shard that the index names is there, and holds what it should."""
    files = weight_map(index)
    names = sorted(set(files.values()))
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise WeightsError(
            f"{index.parent} lacks {len(absent)} of {len(names)} weight files: {absent}",
            fix="copy or download them",
        )
    for name in names:
        lost = [key for key, file in files.items() if file == name and key not in tables[name]]
        if lost:
            raise WeightsError(
                f"{index.parent / name} lacks {lost[:4]}, which {index.name} promises",
                fix="download the file and the index again, from one repository",
            )


def _tensor_faults(folder: Path, check: LlmCheck, torch_free: bool) -> list[str]:
    """Tensors that do not fill the model of config.json; also notes what is merely unused."""
    try:
        if torch_free:
            gaps = compare_with_llama(folder, check.config, check.tensors) or Gaps()
        else:
            gaps = compare_by_loading(folder, check.tensors)
        faults = gap_faults(folder, check.config, check.tensors, gaps)
        if not faults:
            require_finite_vectors({k: i for k, i in check.tensors.items() if not is_buffer(k)})
    except WeightsError as error:
        return [str(error)]
    if gaps.unused and not faults:
        check.notes.append(
            f"{folder} holds {len(gaps.unused)} tensors that config.json's model does not have and "
            f"that are not loaded, as {gaps.unused[0]}"
        )
    return faults


def _look_at_tokenizer(folder: Path, check: LlmCheck, torch_free: bool) -> None:
    if torch_free:
        require_tokenizer_files(folder)
        return
    from mgpt4_hpc.model.llm_files.tokenizer import PAD_TOKEN, load_tokenizer

    tokenizer = load_tokenizer(folder)
    check.vocab_size = tokenizer.vocab_size
    if tokenizer.decode([tokenizer.pad_id]).strip() != PAD_TOKEN:
        check.notes.append(
            f"the vocabulary has no {PAD_TOKEN!r}, which the original pads with; "
            f"token {tokenizer.pad_id} pads instead (padding is never learned)"
        )
    if tokenizer.without_row:
        named = ", ".join(f"{text!r} = {id}" for text, id in tokenizer.without_row.items())
        check.notes.append(
            f"the tokenizer has tokens for which the model has no embedding ({named}): text that "
            "spells them is read as ordinary characters"
        )

"""A language model's folder in Hugging Face layout, read without building the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.weight_files.untrusted_files import one_line, require_real_file
from mgpt4_hpc.prompts import CUSTOM, MODEL_TEMPLATE
from mgpt4_hpc.text_files import parse_json

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
"""Names by which transformers finds the weights; with ``.index.json``, a list of their files."""

_OWN_CONFIG = "take config.json from the repository of the weights"

_MARKS = (
    ("<|start_header_id|>", "llama3"),
    ("<|im_start|>", "qwen"),
    ("<start_of_turn>", "gemma"),
    ("<<SYS>>", "llama2"),
    ("[INST]", "mistral"),
)
"""What a chat template contains, and which of our formats that is."""

TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "vocab.json")
_TOKENIZER_SETTINGS = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
)  # fmt: skip
_SUFFIXES = (".safetensors", ".bin")
_WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")
"""Where neither a file of these names nor its index is there."""


def read_llm_config(llm_dir: Path) -> dict[str, Any]:
    """``config.json`` of a language model's folder.

    Raises:
        WeightsError: if the folder or the file is missing or not JSON, or the folder an adapter's.
    """
    path = llm_dir / "config.json"
    if not llm_dir.is_dir():
        raise WeightsError(
            f"no language model folder at {llm_dir}", fix="give the folder in Hugging Face layout"
        )
    adapter = llm_dir / "adapter_config.json"
    if adapter.is_file():
        raise WeightsError(
            f"{llm_dir} is an adapter (it has {adapter.name}), not a language model",
            why="transformers would load the model that the adapter names instead of this folder's",
            fix="merge it into its base (peft's merge_and_unload) and save that, or remove "
            f"{adapter.name} if the folder holds the whole model",
        )
    try:
        config = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"{llm_dir} has no config.json", fix="give the folder in Hugging Face layout"
        ) from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}", fix=_OWN_CONFIG) from None
    if not isinstance(config, dict):
        raise WeightsError(f"{path} is not a model's configuration", fix=_OWN_CONFIG)
    return config


def own_chat_template(llm_dir: Path) -> str:
    """The text of the chat template that the folder's tokenizer has; "" if it has none."""
    try:
        return (llm_dir / "chat_template.jinja").read_text(encoding="utf-8")
    except (OSError, ValueError):
        pass
    try:
        settings = parse_json((llm_dir / "tokenizer_config.json").read_text(encoding="utf-8"))
        template = settings.get("chat_template")
    except (OSError, ValueError, AttributeError):
        return ""
    if isinstance(template, list):  # several, each with a name
        template = "\n".join(
            str(entry.get("template", "")) for entry in template if isinstance(entry, dict)
        )
    return template if isinstance(template, str) else ""


def own_format(llm_dir: Path) -> str:
    """The value of ``text.template`` for the folder's own chat template; "" if it has none."""
    text = own_chat_template(llm_dir)
    known = (name for mark, name in _MARKS if mark in text)
    return next(known, MODEL_TEMPLATE.name) if text else ""


def original_format(arch: Architecture) -> str:
    """The format in which the original speaks to the language model of this vision side."""
    return "vicuna_v0" if arch.qformer else "llama2"


def format_note(llm_dir: Path, used: str) -> str:
    """That another format than the language model's own is used with it; "" if it is not."""
    own = own_format(llm_dir)
    if not own or used in (own, MODEL_TEMPLATE.name, CUSTOM):
        return ""
    choice = own if own == MODEL_TEMPLATE.name else f"{own}, or to {MODEL_TEMPLATE.name}"
    return (
        f"the language model in {llm_dir} has a chat template of its own; text.template {used} is "
        f"another model's format: set it to {choice}"
    )


def llm_width(config: dict[str, Any], llm_dir: Path) -> int:
    """Width of the hidden states. Raises WeightsError if the configuration has none."""
    width = config.get("hidden_size", config.get("n_embd", config.get("d_model")))
    if not isinstance(width, int):
        raise WeightsError(f"{llm_dir / 'config.json'} has no hidden_size", fix=_OWN_CONFIG)
    return width


def llm_files(llm_dir: Path) -> list[Path]:
    """Files that define the model's numbers: configuration, weights, tokenizer; sorted.

    The weights are those that transformers loads: a folder may hold the same again in another
    format, as Mistral's ``consolidated.safetensors``, or as ``.bin`` beside safetensors.

    Raises:
        WeightsError: if there are no weights, or a file or the index cannot be read.
    """
    weights = _weights(llm_dir)
    if not weights:
        raise WeightsError(
            f"{llm_dir} has no weights ({' or '.join(_WEIGHT_PATTERNS)})",
            fix="copy the model's weight files there",
        )
    names = ("config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json")
    others = [llm_dir / name for name in names if (llm_dir / name).is_file()]
    for path in weights:
        require_real_file(path)
    return sorted(weights + others)


def weight_map(index: Path) -> dict[str, str]:
    """Which file holds which tensor, by an index.

    Raises:
        WeightsError: if it cannot be read, names no file, or one that is not beside it.
    """
    require_real_file(index)
    try:
        content = parse_json(index.read_text(encoding="utf-8"))
        files = {str(key): str(name) for key, name in content["weight_map"].items()}
        if not isinstance(content.get("metadata"), dict):
            raise ValueError('it has no "metadata", which transformers reads before the weights')
        if not files:
            raise ValueError("its weight_map names no file")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"cannot read {index}: {one_line(error)}",
            fix="download the index again, from the repository of the weights",
        ) from None
    for key, name in files.items():
        if Path(name).name != name or Path(name).suffix not in _SUFFIXES:
            raise WeightsError(
                f"{index} names {name} for {key}, which is no {' or '.join(_SUFFIXES)} file "
                "beside it",
                fix="move the weight files into the index's folder and name them so in the index",
            )
    return files


def _weights(llm_dir: Path) -> list[Path]:
    """Weight files and their index, looked for in transformers' order."""
    for name in WEIGHT_FILES:
        if (llm_dir / name).is_file():
            return [llm_dir / name]
        index = llm_dir / f"{name}.index.json"
        if index.is_file():
            named = set(weight_map(index).values())
            if files := [path for path in llm_dir.glob("*") if path.name in named]:
                return [*files, index]
    for pattern in _WEIGHT_PATTERNS:
        if files := list(llm_dir.glob(pattern)):
            return files
    return []


def require_tokenizer_files(llm_dir: Path) -> None:
    """Raises WeightsError unless a tokenizer's files are there and whole, its settings JSON."""
    files = [llm_dir / name for name in TOKENIZER_FILES if (llm_dir / name).exists()]
    if not files:
        raise WeightsError(
            f"{llm_dir} has no tokenizer (none of {', '.join(TOKENIZER_FILES)})",
            fix="copy tokenizer.json and tokenizer_config.json from the model's own repository "
            "into that folder, or tokenizer.model where that is all it has",
        )
    for path in files:
        require_real_file(path)
    for name in _TOKENIZER_SETTINGS:
        path = llm_dir / name
        try:
            if path.exists() and not isinstance(parse_json(path.read_text(encoding="utf-8")), dict):
                raise ValueError("it holds no object")
        except (OSError, ValueError) as error:
            raise WeightsError(
                f"cannot read {path}: {error}",
                fix="copy the tokenizer's files from the model's own repository",
            ) from None


def companion_files(llm_dir: Path) -> list[Path]:
    """Other files that go along when the folder is copied: settings and vocabularies, no code."""
    known = {path.name for path in llm_files(llm_dir)}
    suffixes = {".json", ".txt", ".model", ".jinja"}
    return sorted(
        path
        for path in llm_dir.iterdir()
        if path.suffix in suffixes and path.name not in known and path.is_file()
    )

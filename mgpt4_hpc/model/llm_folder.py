"""A language model's folder in Hugging Face layout, read without building the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import WeightsError

_WEIGHT_PATTERNS = ("*.safetensors", "pytorch_model*.bin")


def read_llm_config(llm_dir: Path) -> dict[str, Any]:
    """``config.json`` of a language model's folder.

    Raises:
        WeightsError: if the folder or the file is missing or not JSON.
    """
    path = llm_dir / "config.json"
    if not llm_dir.is_dir():
        raise WeightsError(f"no language model folder at {llm_dir}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise WeightsError(
            f"{llm_dir} has no config.json", fix="give the folder in Hugging Face layout"
        ) from None
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read {path}: {error}") from None
    if not isinstance(config, dict):
        raise WeightsError(f"{path} is not a model's configuration")
    return config


def llm_width(config: dict[str, Any], llm_dir: Path) -> int:
    """Width of the hidden states. Raises WeightsError if the configuration has none."""
    width = config.get("hidden_size", config.get("n_embd", config.get("d_model")))
    if not isinstance(width, int):
        raise WeightsError(f"{llm_dir / 'config.json'} has no hidden_size")
    return width


def llm_files(llm_dir: Path) -> list[Path]:
    """Files that define the model's numbers: configuration, weights, tokenizer; sorted.

    A folder that has safetensors as well as ``.bin`` files is loaded from the former.

    Raises:
        WeightsError: if there are no weights.
    """
    for pattern in _WEIGHT_PATTERNS:
        weights = sorted(llm_dir.glob(pattern))
        if weights:
            break
    else:
        raise WeightsError(
            f"{llm_dir} has no weights ({' or '.join(_WEIGHT_PATTERNS)})",
            fix="copy the model's weight files there",
        )
    names = ("config.json", "tokenizer.model", "tokenizer.json", "tokenizer_config.json")
    others = [llm_dir / name for name in names if (llm_dir / name).exists()]
    index = list(llm_dir.glob(f"{pattern}.index.json"))
    return sorted(weights + others + index)


def companion_files(llm_dir: Path) -> list[Path]:
    """Other files that go along when the folder is copied: settings and vocabularies, no code."""
    known = {path.name for path in llm_files(llm_dir)}
    suffixes = {".json", ".txt", ".model", ".jinja"}
    return sorted(
        path
        for path in llm_dir.iterdir()
        if path.suffix in suffixes and path.name not in known and path.is_file()
    )

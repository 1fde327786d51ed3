"""The language model's tokenizer, with exactly what training and generation need of it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.llm_folder import read_llm_config
from mgpt4_hpc.model.bundle.untrusted_files import require_real_file
from mgpt4_hpc.model.lazy import garbage_collector_off, quiet_transformers

PAD_TOKEN = "$$"
"""An ordinary token of LLaMA's vocabulary that the original pads with, as LLaMA has none for it."""

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_TOKENIZER_FILES = ("tokenizer.model", "tokenizer.json", "vocab.json")


@dataclass(frozen=True)
class TextTokenizer:
    """Text to ids and back, never adding special tokens.

    Attributes:
        bos_id, eos_id, pad_id: ids of begin, end and padding.
        vocab_size: number of ids.
    """

    bos_id: int
    eos_id: int
    pad_id: int
    vocab_size: int
    _backend: Any

    def encode(self, text: str) -> list[int]:
        """Ids of one text segment, without begin or end."""
        ids: list[int] = self._backend(text, add_special_tokens=False).input_ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids; special tokens appear as they are written (``</s>``)."""
        text: str = self._backend.decode(list(ids), clean_up_tokenization_spaces=False)
        return text

    def is_byte(self, token: int) -> bool:
        """Whether the id is one byte of a character that has no piece of its own (``<0xE4>``)."""
        return bool(_BYTE.fullmatch(str(self._backend.convert_ids_to_tokens(token))))


def load_tokenizer(llm_dir: Path | str) -> TextTokenizer:
    """Tokenizer of a language model's folder, from local files only.

    Raises:
        WeightsError: if there is none, it is a git-lfs pointer, or it cannot be read.
    """
    folder = Path(llm_dir)
    config = read_llm_config(folder)
    files = [folder / name for name in _TOKENIZER_FILES if (folder / name).exists()]
    if not files:
        raise WeightsError(
            f"{folder} has no tokenizer (none of {', '.join(_TOKENIZER_FILES)})",
            fix="copy tokenizer.model from the model's own repository into that folder",
        )
    for path in files:
        require_real_file(path)
    with garbage_collector_off():
        from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            backend = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            raise WeightsError(
                f"cannot read the tokenizer in {folder}: {error}",
                fix="the file is damaged: copy it again from the model's own repository",
            ) from error
    _require_same_vocabulary(folder, backend, config.get("vocab_size"))
    eos_id = _first(backend.eos_token_id, config.get("eos_token_id"))
    if eos_id is None:
        raise WeightsError(f"the tokenizer in {folder} has no end token")
    bos_id = _first(backend.bos_token_id, config.get("bos_token_id"), eos_id)
    assert bos_id is not None
    return TextTokenizer(
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=_pad_id(backend, eos_id, config.get("vocab_size")),
        vocab_size=len(backend),
        _backend=backend,
    )


def _require_same_vocabulary(folder: Path, backend: Any, embedded: Any) -> None:
    """A file cut between two of its records still parses, with fewer pieces: count them.

    Models round their embeddings up, to a multiple of at most 256 or by far less than a tenth
    (Qwen has 151,936 rows for 151,669 tokens). Special tokens that were added to a tokenizer and
    have no row (Vicuna's ``[PAD]`` beside 32,000 rows) do no harm: no text contains them.
    """
    if not isinstance(embedded, int):
        return
    spare = max(256, embedded // 10)
    if len(backend) < embedded - spare or backend.vocab_size > embedded:
        raise WeightsError(
            f"the tokenizer in {folder} has {len(backend)} tokens, the model embeds {embedded}",
            why="the tokenizer's file is cut short, or belongs to another model",
            fix="copy the tokenizer's files from the model's own repository",
        )


def _pad_id(backend: Any, eos_id: int, embedded: Any) -> int:
    """``$$`` where the vocabulary has it, else the model's own padding, else the end token.

    Padded positions are neither attended to nor learned, but they are embedded: a padding token
    without a row of its own cannot be used.
    """
    pad = backend.convert_tokens_to_ids(PAD_TOKEN)
    if pad is not None and pad != backend.unk_token_id:
        return int(pad)
    own = backend.pad_token_id
    if isinstance(embedded, int) and isinstance(own, int) and own >= embedded:
        own = None
    return int(_first(own, backend.unk_token_id, eos_id) or 0)


def _first(*values: Any) -> int | None:
    """The first that is given; some configurations list several end tokens, of which the first."""
    for value in values:
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, int):
            return value
    return None

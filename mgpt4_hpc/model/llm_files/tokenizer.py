"""The language model's tokenizer, with exactly what training and generation need of it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgpt4_hpc.chat_format import LITERAL
from mgpt4_hpc.errors import ConfigError, WeightsError
from mgpt4_hpc.model.lazy import garbage_collector_off, quiet_transformers
from mgpt4_hpc.model.llm_files.folder import read_llm_config, require_tokenizer_files
from mgpt4_hpc.prompts import separators_in

PAD_TOKEN = "$$"
"""An ordinary token of LLaMA's vocabulary that the original pads with, as LLaMA has none for it."""

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


@dataclass(frozen=True)
class TextTokenizer:
    """Text to ids and back, never adding special tokens.

    Attributes:
        bos_id, eos_id, pad_id: ids of begin, end and padding.
        vocab_size: number of ids.
        without_row: tokens of the files for which the model has no embedding, and their ids. Text
            that spells them is encoded as ordinary text.
    """

    bos_id: int
    eos_id: int
    pad_id: int
    vocab_size: int
    _backend: Any
    without_row: Mapping[str, int] = field(default_factory=dict)

    def encode(self, text: str) -> list[int]:
        """Ids of one text segment, without begin or end.

        Characters behind ``LITERAL`` get a token each, which no control token has.
        """
        if LITERAL in text:
            return self.encode_with_offsets(text)[0]
        ids: list[int] = self._backend(text, add_special_tokens=False).input_ids
        return ids

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """The same ids, and where in the text each stands: begin and end."""
        places = [place for place, char in enumerate(text) if char != LITERAL]
        plain = text.replace(LITERAL, "")
        encoded = self._backend(plain, add_special_tokens=False, return_offsets_mapping=True)
        if len(plain) == len(text):
            return list(encoded.input_ids), list(encoded.offset_mapping)
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        for id, (low, high) in zip(encoded.input_ids, encoded.offset_mapping, strict=True):
            there = places[low:high]
            is_literal = any(place and text[place - 1] == LITERAL for place in there)
            new = self._characters(id) if is_literal else [id]
            ids += new
            offsets += [(there[0], there[-1] + 1) if there else (len(text), len(text))] * len(new)
        return ids, offsets

    def _characters(self, id: int) -> list[int]:
        """A token's text as one token for each character, or for each of its bytes."""
        piece = str(self._backend.convert_ids_to_tokens(id))
        if _BYTE.fullmatch(piece):
            return [id]
        known = self._backend.get_vocab()
        # Other pieces are written in the vocabulary's alphabet, which for bytes is its own.
        is_plain = piece in self._backend.get_added_vocab()
        ids: list[int] = []
        for char in piece:
            spelt = [f"<0x{byte:02X}>" for byte in char.encode()]
            if char in known and (char.isascii() or not is_plain):
                spelt = [char]
            ids += [known[p] for p in spelt] if spelt[0] in known else self.encode(char)
        return ids

    @property
    def control_tokens(self) -> frozenset[str]:
        """Texts that the tokenizer reads as control tokens wherever they stand, such as ``</s>``.

        Added tokens that are words, such as ``$$``, are not among them.
        """
        added = self._backend.added_tokens_decoder.values()
        return frozenset(
            token.content for token in added if token.special or separators_in(token.content)
        )

    def definition(self) -> dict[str, Any]:
        """Content of a ``tokenizer.json`` that encodes as this one does.

        Raises:
            WeightsError: if it is none of the tokenizers library.
        """
        fast = getattr(self._backend, "_tokenizer", None)
        if fast is None:
            raise WeightsError(
                f"the tokenizer is a {type(self._backend).__name__}, which has no tokenizer.json"
            )
        content: dict[str, Any] = json.loads(fast.to_str())
        return content

    def special_tokens(self) -> dict[str, str]:
        """Begin, end, padding and unknown token as they are written, by their names there."""
        known = set(self.tokens())  # without those that have no row
        own = {key: str(value) for key, value in self._backend.special_tokens_map.items()
               if isinstance(value, str) and value in known}  # fmt: skip
        bos, eos = self._backend.convert_ids_to_tokens([self.bos_id, self.eos_id])
        own |= {"bos_token": bos, "eos_token": eos}
        return {"pad_token": own.get("unk_token", eos)} | own

    def tokens(self) -> list[str]:
        """Every token as it is written, by its id."""
        ids = list(range(self.vocab_size))
        return [str(token) for token in self._backend.convert_ids_to_tokens(ids)]

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's own template for conversations, of those the one for plain chat."""
        try:
            template: str = self._backend.get_chat_template()
        except ValueError:
            return None
        return template

    @property
    def eos_token(self) -> str | None:
        """The end token as it is written."""
        token = self._backend.eos_token
        return None if token is None else str(token)

    def render_chat(
        self, messages: Sequence[Mapping[str, str]], *, opened: bool
    ) -> tuple[str, list[tuple[int, int]]]:
        """Messages in the chat template: the text, and the spans that it marks as generated.

        Args:
            messages: role and content of each.
            opened: go on to where the next answer begins.

        Raises:
            ConfigError: if the template refuses them.
        """
        from transformers.utils.chat_template_utils import render_jinja_template

        try:
            with quiet_transformers():
                texts, spans = render_jinja_template(
                    [list(messages)],
                    chat_template=self.chat_template,
                    return_assistant_tokens_mask=True,
                    add_generation_prompt=opened,
                    **self._backend.special_tokens_map,
                )
        except Exception as error:  # a template is a program of its own
            raise ConfigError(
                f"the language model's chat template cannot be used: {error}",
                fix="write the format as text.prompt and text.end_symbol",
            ) from error
        return texts[0], [tuple(span) for span in spans[0]]

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
    require_tokenizer_files(folder)
    with garbage_collector_off():
        from transformers import AutoTokenizer

    with quiet_transformers():
        try:
            backend = AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:
            raise WeightsError(
                f"cannot read the tokenizer in {folder}: {error}",
                fix="the file is damaged: copy it again from the model's own repository",
            ) from error
    rows = config.get("vocab_size")
    _require_same_vocabulary(folder, backend, rows)
    rows = rows if isinstance(rows, int) else len(backend)
    own_ids = [backend.bos_token_id, backend.eos_token_id, backend.pad_token_id]
    without_row = _forget_tokens_without_row(folder, backend, rows)
    bos, eos, pad = (id if isinstance(id, int) and id < rows else None for id in own_ids)
    eos_id = _first(eos, config.get("eos_token_id"))
    if eos_id is None or eos_id >= rows:
        raise WeightsError(
            f"the tokenizer in {folder} has no end token"
            + (f" within the {rows} rows of the embedding" if eos_id is not None else "")
        )
    bos_id = _first(bos, config.get("bos_token_id"), eos_id)
    assert bos_id is not None
    return TextTokenizer(
        bos_id=bos_id,
        eos_id=eos_id,
        pad_id=_pad_id(backend, eos_id, pad),
        vocab_size=len(backend),
        _backend=backend,
        without_row=without_row,
    )


def _forget_tokens_without_row(folder: Path, backend: Any, rows: int) -> dict[str, int]:
    """Take added tokens at or above ``rows`` out of the tokenizer; returns them with their ids.

    Llama-2's ``<pad>`` and Vicuna v0's ``[PAD]`` were published beside embeddings of 32,000 rows.
    A text that spells one would become an id that the embedding cannot look up.
    """
    absent = {text: id for text, id in backend.get_added_vocab().items() if id >= rows}
    fast = getattr(backend, "_tokenizer", None)
    if absent and fast is not None:
        state = json.loads(fast.to_str())
        kept = [token for token in state["added_tokens"] if token["id"] < rows]
        backend._tokenizer = type(fast).from_str(json.dumps(state | {"added_tokens": kept}))
    above = {text: id for text, id in backend.get_vocab().items() if id >= rows}
    if above:
        raise WeightsError(
            f"the tokenizer in {folder} has tokens for which the model has no embedding: "
            f"{dict(list(above.items())[:4])}, the embedding has {rows} rows",
            fix="take the tokenizer's files from the repository of the weights",
        )
    return absent


def _require_same_vocabulary(folder: Path, backend: Any, embedded: Any) -> None:
    """A file cut between two of its records still parses, with fewer pieces: count them.

    Models round their embeddings up, to a multiple of at most 256 or by far less than a tenth
    (Qwen has 151,936 rows for 151,669 tokens). Added tokens without a row are no fault of the file.
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


def _pad_id(backend: Any, eos_id: int, own: int | None) -> int:
    """``$$`` where the vocabulary has it, else the model's own padding, else the end token.

    Padded positions are neither attended to nor learned, but they are embedded: a padding token
    without a row of its own cannot be used.
    """
    pad = backend.convert_tokens_to_ids(PAD_TOKEN)
    if pad is not None and pad != backend.unk_token_id:
        return int(pad)
    return int(_first(own, backend.unk_token_id, eos_id) or 0)


def _first(*values: Any) -> int | None:
    """The first that is given; of several end tokens the first."""
    for value in values:
        if isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, int):
            return value
    return None

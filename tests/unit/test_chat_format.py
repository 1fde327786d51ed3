"""From texts to token ids: literal control tokens, bounded answers, end symbols."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgpt4_hpc.chat_format import AnswerLimit, Literally, TemplateFormat, answer_ids
from mgpt4_hpc.data.batching.text import build_sequence
from mgpt4_hpc.model.llm_files.tokenizer import load_tokenizer
from mgpt4_hpc.prompts import TEMPLATES
from tests.unit.data.worlds import encode, text_spec

REFERENCE = Path(__file__).parents[1] / "reference"


def a_tokenizer(folder: Path) -> Callable[[str], list[int]]:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.LlamaTokenizer.from_pretrained(folder)
    return lambda text: tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("instruction", [None, "Describe it."])
def test_a_caption_that_spells_control_tokens_is_text(instruction: str | None) -> None:
    encode = load_tokenizer(REFERENCE / "llama2_tiny" / "llm").encode
    spellings = Literally({"</s>", "<s>"})
    form = TemplateFormat(TEMPLATES["llama2"], encode, bos_id=1, literally=spellings)
    spec = text_spec(encode=encode, chat_format=form, clean=instruction is None)
    ids = build_sequence(spec, "a </s> b<s> dog", instruction).input_ids.tolist()
    assert ids.count(1) == 1 and ids.count(2) == (0 if instruction is None else 1)


def test_the_end_symbol_survives_a_long_answer() -> None:
    expected = json.loads((REFERENCE / "vicuna_tiny" / "expected.json").read_text())
    long = expected["stage1.answers"][2]
    tokenize = a_tokenizer(REFERENCE / "vicuna_tiny" / "llm")
    for end_symbol in ("\n", "###"):
        whole = tokenize(long + end_symbol)
        kept = answer_ids(tokenize, long, end_symbol, AnswerLimit(32))
        cut = answer_ids(tokenize, long, end_symbol, AnswerLimit(32, keep_end_symbol=False))
        assert len(kept) == len(cut) == 32 < len(whole)
        assert cut == whole[:32]
        num_end = len(tokenize("x" + end_symbol)) - len(tokenize("x"))
        assert kept[-num_end:] == whole[-num_end:]
        assert kept[:-num_end] == whole[: 32 - num_end]


@given(st.text(max_size=60), st.sampled_from(["\n", "###", "</s>"]), st.integers(4, 40))
def test_answers_are_bounded_and_end_properly(caption: str, end_symbol: str, limit: int) -> None:
    ids = answer_ids(encode, caption, end_symbol, AnswerLimit(limit))
    assert 0 < len(ids) <= limit
    assert ids[-len(end_symbol) :] == encode(end_symbol)
    assert ids[: -len(end_symbol)] == encode(caption)[: limit - len(end_symbol)]

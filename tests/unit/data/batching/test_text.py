"""Sequences as the original lays them out, checked against what it computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mgpt4_hpc.chat_format import TemplateFormat
from mgpt4_hpc.data.batching.text import NO_LABEL, TextSpec, build_sequence, clean_caption
from mgpt4_hpc.prompts import TEMPLATES
from tests.support.layout import sequence_of
from tests.unit.data.worlds import encode, text_spec

REFERENCE = Path(__file__).parents[3] / "reference"


def a_tokenizer(folder: Path) -> Callable[[str], list[int]]:
    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.LlamaTokenizer.from_pretrained(folder)
    return lambda text: tokenizer(text, add_special_tokens=False).input_ids


@pytest.mark.parametrize("model", ["vicuna_tiny", "llama2_tiny"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_targets_are_the_originals(model: str, stage: str) -> None:
    folder = REFERENCE / model
    expected = json.loads((folder / "expected.json").read_text())
    tensors = load_file(folder / "expected.safetensors")
    num_image_tokens = tensors[f"{stage}.image_embeds"].shape[1]
    prompts = expected.get(f"{stage}.prompts", [None] * len(expected[f"{stage}.answers"]))
    encode = a_tokenizer(folder / "llm")
    spec = TextSpec(
        encode=encode,
        bos_id=1,
        pad_id=0,
        num_image_tokens=num_image_tokens,
        max_answer_tokens=expected[f"{stage}.max_text_tokens"],
        end_symbol=expected[f"{stage}.end_symbol"],
        chat_format=TemplateFormat(TEMPLATES["vicuna_v0"], encode, bos_id=1),
        keep_end_symbol=False,
    )
    targets, before = tensors[f"{stage}.regress_targets"], tensors[f"{stage}.cond_atts"]
    for answer, prompt, target, mask in zip(
        expected[f"{stage}.answers"], prompts, targets, before, strict=True
    ):
        sequence = sequence_of(spec, answer, prompt)
        learned = sequence.labels != NO_LABEL
        assert sequence.labels[learned].tolist() == target[target != NO_LABEL].tolist()
        assert int((~learned).sum()) == 1 + int(mask.sum())  # BOS stands before the prompt
        assert int(sequence.image_mask.sum()) == num_image_tokens


def test_layout_with_and_without_prompt() -> None:
    plain = build_sequence(text_spec(), "ab")
    assert plain.input_ids.tolist() == [1, 0, 0, 0, 0, *encode("ab\n")]
    assert plain.image_mask.tolist() == [False, *[True] * 4, *[False] * 3]
    assert plain.labels.tolist() == [NO_LABEL] * 5 + encode("ab\n")
    prompted = sequence_of(text_spec(), "ab", "Q<Img><ImageHere></Img>?")
    before, after = encode("Q<Img>"), encode("</Img>?")
    assert prompted.input_ids.tolist() == [1, *before, 0, 0, 0, 0, *after, *encode("ab\n")]
    assert np.flatnonzero(prompted.image_mask).tolist() == [7, 8, 9, 10]
    assert (prompted.labels != NO_LABEL).sum() == 3


def test_cleaning() -> None:
    assert clean_caption('A "Big" Dog!  (see: #3)\n*~;') == "a big dog see 3"
    assert clean_caption("one two three", 2) == "one two"
    assert clean_caption("  tabs\tand\nlines  ") == "tabs and lines"
    assert clean_caption("e.g. U.S.A.") == "e g u s a"
    assert clean_caption("...") == ""
    assert len(clean_caption("word " * 80).split()) == 50
    assert len(clean_caption("word " * 80, None).split()) == 80
    raw = build_sequence(text_spec(clean=False), "A.")
    assert raw.labels[raw.labels != NO_LABEL].tolist() == encode("A.\n")
    cleaned = build_sequence(text_spec(clean=True), "A.")
    assert cleaned.labels[cleaned.labels != NO_LABEL].tolist() == encode("a\n")

"""Tokenizers of every kind encode conversations as training did, or are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from mgpt4_hpc.model.huggingface.processor import (
    _flat,
    export_processor,
    image_token,
)
from mgpt4_hpc.model.llm_files.chat_template import chat_format
from mgpt4_hpc.model.llm_files.tokenizer import TextTokenizer, load_tokenizer
from mgpt4_hpc.prompts import MODEL_TEMPLATE, Dialogue, Template, Turn, get_template
from mgpt4_hpc.resources import toy_world_dir

TOY = toy_world_dir() / "weights" / "llm"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('no system prompt') }}{% endif %}"
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def own(folder: Path, content: dict[str, Any], settings: dict[str, Any]) -> TextTokenizer:
    folder.mkdir()
    vocabulary = max(1 + token["id"] for token in content["added_tokens"])
    rows = max(vocabulary, len(content["model"]["vocab"])) + 3
    config = {"model_type": "llama", "vocab_size": rows, "hidden_size": 64}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(json.dumps(content))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast"} | settings
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return load_tokenizer(folder)


def toy_like(folder: Path, **changes: Any) -> TextTokenizer:
    """The toy's pieces in another of the layouts that LLaMA's have been published in."""
    content = load_tokenizer(TOY).definition() | changes
    special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return own(folder, content, special)


def byte_level(folder: Path, chat_template: str) -> TextTokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        ["is it red, and what is this image in detail? <Img>", "Describe the picture."] * 4,
        trainers.BpeTrainer(
            vocab_size=330,
            special_tokens=["<|end|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    settings = {"eos_token": "<|end|>", "bos_token": "<|end|>", "chat_template": chat_template}
    return own(folder, json.loads(tokenizer.to_str()), settings)


def metaspace(scheme: str) -> dict[str, Any]:
    return {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}


PREPEND = {
    "pre_tokenizer": None,
    "normalizer": {
        "type": "Sequence",
        "normalizers": [
            {"type": "Prepend", "prepend": "\u2581"},
            {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"},
        ],
    },
}
OWN_PROMPT = Template("own", "Q: {}\nA:", "\n\n", system="{}\n")


@pytest.mark.parametrize(
    "template", [get_template("vicuna_v0"), get_template("llama2"), OWN_PROMPT]
)
@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": metaspace("always")},
        {"pre_tokenizer": metaspace("first")},
        {"pre_tokenizer": metaspace("never")},
        PREPEND,
    ],
    ids=["always", "first", "never", "prepend"],
)
def test_sentencepiece_in_every_layout(changes: dict, template: Template, tmp_path: Path) -> None:
    compare(toy_like(tmp_path / "llm", **changes), template, tmp_path / "out")


@pytest.mark.parametrize("chat_template", [CHATML, NO_SYSTEM])
def test_a_models_own_chat_template(chat_template: str, tmp_path: Path) -> None:
    compare(byte_level(tmp_path / "llm", chat_template), MODEL_TEMPLATE, tmp_path / "out")


def test_byte_level_with_our_template(tmp_path: Path) -> None:
    compare(byte_level(tmp_path / "llm", CHATML), get_template("vicuna_v0"), tmp_path / "out")


@pytest.mark.parametrize("layout", ["always", "first"])
def test_a_sentencepiece_model_with_its_own_chat_template(layout: str, tmp_path: Path) -> None:
    tokenizer = toy_like(tmp_path / "plain", pre_tokenizer=metaspace(layout))
    shutil.copytree(tmp_path / "plain", tmp_path / "llm")
    settings = tmp_path / "llm" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"chat_template": NO_SYSTEM}))
    assert tokenizer.chat_template is None
    compare(load_tokenizer(tmp_path / "llm"), MODEL_TEMPLATE, tmp_path / "out")


def compare(tokenizer: TextTokenizer, template: Template, out: Path) -> None:
    """Ids of conversations that the export did not look at itself."""
    from transformers import AutoTokenizer

    image = image_token(tokenizer, count=3)
    out.mkdir()
    export_processor(out, tokenizer, template, image, image_size=28, system="See, and say.")
    theirs, ours = AutoTokenizer.from_pretrained(out), chat_format(template, tokenizer)
    asked = Dialogue(
        (
            Turn((None, "red", None), "It is  red"),
            Turn(("and\nwhat", None, "is the picture?"), " Describe."),
            Turn(("  is it?",), None),
        ),
        "See, and say.",
    )
    for count in (1, 2, 3):
        turns = (*asked.turns[: count - 1], Turn(asked.turns[count - 1].question, None))
        told = Dialogue(turns, asked.system)
        found = theirs.apply_chat_template(
            Dialogue(turns).messages(), add_generation_prompt=True, return_dict=False
        )
        assert found == _flat(ours.lay_out(told), image.id)

"""Ids are the original tokenizer's, and what is no tokenizer is said to be none."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

from mgpt4_hpc.chat_format import Literally
from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.llm_files.tokenizer import TextTokenizer, load_tokenizer
from mgpt4_hpc.resources import toy_world_dir

REFERENCE = Path(__file__).parents[3] / "reference"
GOLDEN = json.loads((REFERENCE / "tokenizer_segments.json").read_text())


@pytest.fixture(scope="module")
def sentencepiece_32k(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """The tokenizer that the golden ids were made with: a LLaMA-style one of 32,000 pieces."""
    spec = importlib.util.find_spec("mistral_common")
    assert spec is not None and spec.origin is not None
    folder = tmp_path_factory.mktemp("llm")
    source = Path(spec.origin).parent / "data" / "tokenizer.model.v1"
    shutil.copyfile(source, folder / "tokenizer.model")
    llm = REFERENCE / "vicuna_tiny" / "llm"
    shutil.copyfile(llm / "tokenizer_config.json", folder / "tokenizer_config.json")
    config = json.loads((llm / "config.json").read_text()) | {"vocab_size": 32000}
    (folder / "config.json").write_text(json.dumps(config))
    return load_tokenizer(folder)


def test_special_ids(sentencepiece_32k: TextTokenizer) -> None:
    assert sentencepiece_32k.bos_id == GOLDEN["bos"]
    assert sentencepiece_32k.eos_id == GOLDEN["eos"]
    assert sentencepiece_32k.pad_id == GOLDEN["pad_token_id"]
    assert sentencepiece_32k.vocab_size == 32000


# Newer tokenizers differ on texts that begin with white space; no segment of ours does.
SEGMENTS = [c for c in GOLDEN["cases"] if not c["text"].startswith("  ") and c["text"] != " "]


@pytest.mark.parametrize("case", SEGMENTS, ids=lambda case: repr(case["text"][:24]))
def test_segments(sentencepiece_32k: TextTokenizer, case: dict) -> None:
    assert sentencepiece_32k.encode(case["text"]) == case["ids"]


def test_a_spelt_control_token_is_one_token_for_each_character(
    sentencepiece_32k: TextTokenizer,
) -> None:
    spelling = Literally({"###", "</s>", "<Img>"})
    for text in ("a ### b", "####Human", "Say </s> twice</s>", "</s>", "<Img>é<Img>"):
        parsed, ids = sentencepiece_32k.encode(text), sentencepiece_32k.encode(spelling.text(text))
        assert sentencepiece_32k.eos_id not in ids
        assert sentencepiece_32k.decode(ids) == text and len(ids) > len(parsed)
    byte_level = a_byte_level_tokenizer()
    parsed, ids = (
        byte_level.encode(t) for t in ("x<|é|> y", Literally({"<|é|>"}).text("x<|é|> y"))
    )
    assert byte_level.eos_id in parsed and byte_level.eos_id not in ids
    assert byte_level.decode(ids) == "x<|é|> y"
    assert byte_level.control_tokens == {"<|é|>"}, "and not the added word"


def a_byte_level_tokenizer() -> TextTokenizer:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, show_progress=False)
    backend.train_from_iterator(["<| |> <|x|>"] * 4, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|é|>")
    fast.add_tokens([AddedToken("word", special=False)])
    return TextTokenizer(0, fast.eos_token_id, 0, len(fast), fast)


def test_decoding_gives_the_text_back(sentencepiece_32k: TextTokenizer) -> None:
    for text in ("a red bicycle", "Two dogs.\nThe sky is cloudy ###", "caffè, 日本"):
        assert sentencepiece_32k.decode(sentencepiece_32k.encode(text)) == text


def test_git_lfs_pointer(tmp_path: Path) -> None:
    shutil.copyfile(REFERENCE / "vicuna_tiny" / "llm" / "config.json", tmp_path / "config.json")
    (tmp_path / "tokenizer.model").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:9e55\nsize 499723\n"
    )
    with pytest.raises(WeightsError, match="git-lfs pointer") as caught:
        load_tokenizer(tmp_path)
    assert "git lfs pull" in str(caught.value)


def test_folder_without_tokenizer(tmp_path: Path) -> None:
    shutil.copyfile(REFERENCE / "vicuna_tiny" / "llm" / "config.json", tmp_path / "config.json")
    with pytest.raises(WeightsError, match="has no tokenizer"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("kept", "message"), [(500, "30 tokens, the model embeds 512"), (4000, "cannot read")]
)
def test_truncated_tokenizer(tmp_path: Path, kept: int, message: str) -> None:
    shutil.copytree(REFERENCE / "vicuna_tiny" / "llm", tmp_path / "llm")
    model = tmp_path / "llm" / "tokenizer.model"
    model.write_bytes(model.read_bytes()[:kept])
    with pytest.raises(WeightsError, match=message):
        load_tokenizer(tmp_path / "llm")


# --- tokens without a row in the embedding -----------------------------------------------------


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("fast_file", [True, False])
def test_a_token_without_a_row_is_ordinary_text(
    tmp_path: Path, special: bool, fast_file: bool
) -> None:
    plain = tmp_path / "plain"
    shutil.copytree(toy_world_dir() / "weights" / "llm", plain)
    ordinary = load_tokenizer(plain)
    folder = tmp_path / "llm"
    shutil.copytree(plain, folder)
    backend = ordinary._backend
    if fast_file:
        backend.add_tokens(["<pad>", "[more]"], special_tokens=special)
        backend.save_pretrained(folder)
        ordinary = load_tokenizer(plain)
    else:
        added = {"<pad>": 640, "[more]": 641}
        (folder / "added_tokens.json").write_text(json.dumps(added))
        if special:
            names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>"}
            (folder / "special_tokens_map.json").write_text(json.dumps(names))
    found = load_tokenizer(folder)
    assert found.without_row == {"<pad>": 640, "[more]": 641}
    assert (found.bos_id, found.eos_id, found.pad_id) == (
        ordinary.bos_id,
        ordinary.eos_id,
        ordinary.pad_id,
    )
    for text in ("how to use the <pad> token", "<pad>", "a[more]<pad> b", "two boxes ###", "</s>"):
        ids = found.encode(text)
        assert ids == ordinary.encode(text) and max(ids) < 640
        assert found.decode(ids) == ordinary.decode(ids)


def test_an_end_token_without_a_row_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "llm"
    shutil.copytree(toy_world_dir() / "weights" / "llm", folder)
    (folder / "added_tokens.json").write_text(json.dumps({"<end>": 640}))
    for name in ("tokenizer_config.json", "config.json"):
        path = folder / name
        changes = {"eos_token": "<end>"} if name.startswith("tok") else {"eos_token_id": 640}
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(WeightsError, match="no end token within the 640 rows"):
        load_tokenizer(folder)

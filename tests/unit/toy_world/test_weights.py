"""The shipped towers have the original's file formats and load strictly."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from toy_world.documents import AFTER_IMAGE, BEFORE_IMAGE
from toy_world.scenes import WORDS

REFERENCE = Path(__file__).resolve().parents[2] / "reference" / "vicuna_tiny"


@pytest.fixture(scope="module")
def weights(product: Path) -> Path:
    return product / "weights"


@pytest.fixture(scope="module")
def tokenizer(weights: Path) -> SentencePieceProcessor:
    return SentencePieceProcessor(model_file=str(weights / "llm/tokenizer.model"))


def _kinds(names: object, depth: int, layers: int) -> set[str]:
    """Names of tensors with the numbers of blocks and layers replaced by what they mean."""
    kinds = set()
    for name in names:
        parts = name.split(".")
        for index, part in enumerate(parts):
            if part.isdigit() and parts[index - 1] == "blocks":
                parts[index] = "SURPLUS" if int(part) == depth else "N"
            elif part.isdigit():
                parts[index] = "EVEN" if int(part) % 2 == 0 else "ODD"
        kinds.add(".".join(parts))
    return kinds


def test_architecture_has_the_references_keys(weights: Path) -> None:
    ours = json.loads((weights / "architecture.json").read_text())
    theirs = json.loads((REFERENCE / "expected.json").read_text())["architecture"]
    assert set(theirs) <= set(ours)
    assert set(ours) - set(theirs) <= {"cross_attention_frequency"}


@pytest.mark.parametrize("name", ["eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth"])
def test_tensors_are_named_as_in_the_original(weights: Path, name: str) -> None:
    ours, theirs = (torch.load(f / name, weights_only=True) for f in (weights, REFERENCE))
    if name.startswith("blip2"):
        assert list(ours) == ["model"]
        ours, theirs = ours["model"], theirs["model"]
    architecture = json.loads((weights / "architecture.json").read_text())
    depth, layers = architecture["vision_depth"], architecture["qformer_layers"]
    assert _kinds(ours, depth, layers) == _kinds(theirs, 3, 4)
    assert {v.dtype for v in ours.values()} <= {torch.float16, torch.int64}
    assert all(torch.isfinite(value).all() for value in ours.values())


def test_vision_shapes_follow_from_the_architecture(weights: Path) -> None:
    a = json.loads((weights / "architecture.json").read_text())
    vision = torch.load(weights / "eva_vit_g.pth", weights_only=True)
    width, patches = a["vision_width"], (a["image_size"] // a["patch_size"]) ** 2
    assert vision["pos_embed"].shape == (1, patches + 1, width)
    assert vision["patch_embed.proj.weight"].shape == (width, 3, a["patch_size"], a["patch_size"])
    blocks = {name.split(".")[1] for name in vision if name.startswith("blocks.")}
    assert blocks == {str(block) for block in range(a["vision_depth"] + 1)}


def test_llm_folder_is_hugging_faces(weights: Path) -> None:
    config = json.loads((weights / "llm/config.json").read_text())
    reference = json.loads((REFERENCE / "llm/config.json").read_text())
    assert set(config) == set(reference)
    state = load_file(weights / "llm/model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert state["lm_head.weight"].shape == (config["vocab_size"], config["hidden_size"])
    assert not torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    there = {file.name for file in (weights / "llm").iterdir()}
    assert there == {file.name for file in (REFERENCE / "llm").iterdir()}


def test_tokenizer_keeps_llamas_conventions(
    weights: Path, tokenizer: SentencePieceProcessor
) -> None:
    config = json.loads((weights / "llm/config.json").read_text())
    assert tokenizer.get_piece_size() == config["vocab_size"]
    assert [tokenizer.id_to_piece(i) for i in range(4)] == ["<unk>", "<s>", "</s>", "$$"]
    assert tokenizer.is_byte(tokenizer.piece_to_id("<0x0A>"))
    assert tokenizer.decode(tokenizer.encode("caf\u00e9 z\n")) == "caf\u00e9 z\n"
    for word in WORDS:
        assert len(tokenizer.encode(word)) == len(tokenizer.encode(word.capitalize())) == 1


def test_stop_symbol_is_a_token_of_its_own_after_a_full_stop(
    tokenizer: SentencePieceProcessor,
) -> None:
    pieces = tokenizer.encode("The background is grey.###", out_type=str)
    assert pieces[-2:] == [".", "###"]


def test_transformers_tokenizes_alike(weights: Path, tokenizer: SentencePieceProcessor) -> None:
    from transformers import LlamaTokenizer

    theirs = LlamaTokenizer.from_pretrained(str(weights / "llm"))
    segments = [BEFORE_IMAGE, *AFTER_IMAGE]
    segments += ["a red ring\n", "The ring is grey.###", "photo 7 a red ring", "caf\u00e9"]
    for segment in segments:
        ids = theirs(segment, add_special_tokens=False).input_ids
        assert ids == tokenizer.encode(segment), segment
    assert theirs.convert_tokens_to_ids("$$") == 3


def test_the_builders_prompt_is_the_original_projects() -> None:
    assert BEFORE_IMAGE == "###Human: <Img>"
    assert AFTER_IMAGE[0] == "</Img> Describe this image in detail. ###Assistant: "
    assert len(AFTER_IMAGE) == 4


def test_weights_can_be_read_by_everyone(weights: Path) -> None:
    assert all(f.stat().st_mode & 0o044 == 0o044 for f in weights.rglob("*") if f.is_file())


def test_the_readme_names_the_weights_that_ship(product: Path, weights: Path) -> None:
    readme = (product / "README.md").read_text()
    binaries = [f for f in weights.rglob("*") if f.suffix in (".pth", ".safetensors", ".model")]
    assert len(binaries) == 4
    for file in binaries:
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        assert f"{digest}  {file.relative_to(product).as_posix()}" in readme

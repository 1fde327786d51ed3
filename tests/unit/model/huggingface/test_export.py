"""transformers loads what was exported by itself, and computes what we compute."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from mgpt4_hpc.data.images.decode import decode_image
from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.evaluation.model_card import use
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.model.generation.chat_model import ChatModel, find_source
from mgpt4_hpc.model.generation.prompt_embedding import build_context
from mgpt4_hpc.model.generation.sampling import Sampling
from mgpt4_hpc.model.huggingface.export import TrainedModel, export_model
from mgpt4_hpc.model.nn.minigpt4 import build_model
from mgpt4_hpc.model.nn.preprocess import normalise
from mgpt4_hpc.prompts import STAGE2_INSTRUCTIONS, Dialogue, Turn, get_template
from tests.unit.model.huggingface.conftest import Exported, weights
from tests.unit.model.nn.test_language import folder_with

GPT2 = {"n_embd": 64, "n_layer": 2, "n_head": 4}


@pytest.fixture(scope="module")
def ours(exported: Exported) -> ChatModel:
    return ChatModel(find_source(exported.run.path))


@pytest.fixture(scope="module")
def theirs(exported: Exported):
    from transformers import AutoModelForImageTextToText

    model, info = AutoModelForImageTextToText.from_pretrained(
        exported.folder, dtype="float32", output_loading_info=True
    )
    assert not any(info.values()), info
    return model


@pytest.fixture(scope="module")
def processor(exported: Exported):
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(exported.folder, backend="pil")


def photos(count: int, size: tuple[int, int] = (224, 224)) -> list[Image.Image]:
    rng = np.random.default_rng(5)
    rows = rng.integers(0, 256, (count, 6, 6, 3), dtype=np.uint8)
    return [Image.fromarray(row).resize(size) for row in rows]


def pixels_of(images: list[Image.Image]) -> torch.Tensor:
    if not images:
        return torch.zeros(0, 3, 224, 224, dtype=torch.uint8)
    return torch.from_numpy(np.stack([np.asarray(i) for i in images])).permute(0, 3, 1, 2)


def inputs_of(processor, dialogue: Dialogue, images: list[Image.Image]) -> dict:
    """One conversation, repeated where there are images for more."""
    left, conversations = iter(images), []
    for _ in range(len(images) // max(1, dialogue.num_images) or 1):
        conversations.append(dialogue.messages())
        for message in conversations[-1]:
            for piece in message["content"]:
                if piece["type"] == "image":
                    piece["image"] = next(left)
    return processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )


def dialogues() -> list[Dialogue]:
    """Every instruction with no, one and two images, and conversations."""
    single = [
        Dialogue((Turn((*(None,) * count, text), None),))
        for text in STAGE2_INSTRUCTIONS
        for count in range(3)
    ]
    later = Turn(("And", None, "here, ünlike  before?"), None)
    return [
        *single,
        Dialogue((Turn((None, STAGE2_INSTRUCTIONS[0]), "A red star."), later)),
        Dialogue((Turn(("Hi", None), " Two\nlines. "), Turn(("Why?",), "So."), later), "Be kind."),
    ]


@pytest.mark.slow
def test_token_ids_and_logits_are_ours(ours: ChatModel, theirs, processor) -> None:
    per_image = ours.bundle.architecture.num_image_tokens
    for dialogue in dialogues():
        images = photos(dialogue.num_images)
        layout, found = ours.prompt(dialogue), inputs_of(processor, dialogue, images)
        image_id = theirs.config.image_token_id
        wanted = [
            id for run in layout for id in ([image_id] * per_image if run is None else run.ids)
        ]
        assert found["input_ids"][0].tolist() == wanted, dialogue.transcript()
        with torch.no_grad():
            features = ours.encode(pixels_of(images))
            context = build_context(ours.model, ours.tokenizer, [layout], [features])
            expected = ours.model.language_model(inputs_embeds=context.embeds_BTD).logits
            run = theirs if images else theirs.language_model
            logits = run(**found).logits
        torch.testing.assert_close(logits[..., :-1], expected, rtol=0, atol=1e-4)
        assert (logits[..., -1] < logits[..., :-1].max(-1).values).all(), "the image token"


@pytest.mark.slow
def test_two_hundred_greedy_tokens_are_ours(ours: ChatModel, theirs, processor) -> None:
    question = Dialogue((Turn((None, STAGE2_INSTRUCTIONS[0]), None),))
    images = photos(20)
    answers = ours.answers(
        [ours.prompt(question)] * len(images),
        list(ours.encode(pixels_of(images)).split(1)),
        Sampling(max_new_tokens=200),
    )
    found = inputs_of(processor, question, images)
    theirs.generation_config.max_new_tokens = 200
    ids = theirs.generate(
        **found, generation_config=theirs.generation_config, tokenizer=processor.tokenizer
    )
    new = ids[:, found["input_ids"].shape[1] :].tolist()
    lengths = [len(answer.token_ids) for answer in answers]
    assert max(lengths) == 200
    for row, answer in zip(new, answers, strict=True):
        assert row[: len(answer.token_ids)] == list(answer.token_ids)
        assert not answer.stopped or set(row[len(answer.token_ids) :]) <= {theirs_pad(theirs)}


def theirs_pad(theirs) -> int:
    return theirs.generation_config.pad_token_id


@pytest.mark.slow
@pytest.mark.parametrize("size", [(224, 224), (640, 480), (100, 333)])
def test_pixels_are_ours(ours: ChatModel, exported: Exported, processor, size, tmp_path) -> None:
    from transformers import AutoProcessor

    (image,) = photos(1, size)
    image.save(tmp_path / "photo.png")
    pixels = decode_image((tmp_path / "photo.png").read_bytes(), ours.image_size)
    expected = normalise(torch.from_numpy(pixels)[None])
    found = processor.image_processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(found, expected)
    default = AutoProcessor.from_pretrained(exported.folder)
    other = default.image_processor(image, return_tensors="pt")["pixel_values"]
    bound = 5e-7 if size == (224, 224) else 0.05  # three steps of 255
    torch.testing.assert_close(other, expected, rtol=0, atol=bound)


def test_generation_ends_at_the_end_symbol(exported: Exported, processor) -> None:
    settings = json.loads((exported.folder / "generation_config.json").read_text())
    assert settings["stop_strings"] == ["###"]
    ends = processor.tokenizer.convert_ids_to_tokens(settings["eos_token_id"])
    assert ends[0] == "</s>" and set(ends[1:]) == {"###", "\u2581###"}


def test_models_without_a_q_former_are_refused_with_the_reason(tmp_path: Path) -> None:
    folder = Path(__file__).parents[3] / "reference" / "llama2_tiny"
    sizes = json.loads((folder / "expected.json").read_text())["architecture"]
    bundle = open_bundle(folder, architecture=Architecture.from_dict(sizes))
    projector = {"weight": torch.zeros(1, 1), "bias": torch.zeros(1)}
    model = TrainedModel(bundle, projector, get_template("llama2"))
    with pytest.raises(WeightsError, match=r"(?s)without Q-Former.*joins four patches"):
        export_model(tmp_path / "out", model, card="")
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_documentation_shows_what_answers(
    ours: ChatModel, exported: Exported, tmp_path: Path, monkeypatch, capsys
) -> None:
    page = (Path(__file__).parents[4] / "docs" / "export.md").read_text()
    lines = re.search(r"```python\n(from PIL.*?)```", page, re.DOTALL)[1]
    assert lines == use("my-minigpt4", "###")
    card = (exported.folder / "README.md").read_text()
    assert use(exported.folder.name, "###") in card
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my-minigpt4").symlink_to(exported.folder)
    (image,) = photos(1)
    image.save("photo.jpg")
    Path("lines.py").write_text(lines)
    runpy.run_path("lines.py")
    pixels = decode_image(Path("photo.jpg").read_bytes(), ours.image_size)
    dialogue = Dialogue((Turn((None, STAGE2_INSTRUCTIONS[0]), None),))
    features = ours.encode(torch.from_numpy(pixels)[None])
    (answer,) = ours.answers([ours.prompt(dialogue)], [features], Sampling(max_new_tokens=300))
    assert capsys.readouterr().out.strip() == answer.text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "changes"), [("qwen2", {"tie_word_embeddings": True}), ("gpt2", {}), ("mistral", {})]
)
def test_other_language_models(family: str, changes: dict, vicuna, tmp_path: Path) -> None:
    """Tied matrices, other names, and special tokens for which there is no row."""
    from transformers import AutoModelForImageTextToText

    folder = folder_with(family, vicuna, tmp_path, **GPT2 if family == "gpt2" else changes)
    bundle = open_bundle(folder)
    projector = bundle.projector_state() or {}
    model = TrainedModel(bundle, projector, get_template("vicuna_v0"))
    export_model(tmp_path / "out", model, card="")
    theirs, info = AutoModelForImageTextToText.from_pretrained(
        tmp_path / "out", dtype="float32", output_loading_info=True
    )
    assert not any(info.values()), info
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        found = theirs.language_model(ids).logits
        expected = build_model(bundle).language_model(ids).logits
    torch.testing.assert_close(found[..., :-1], expected, rtol=0, atol=1e-4)
    weights("import", "--hf", tmp_path / "out", "--out", tmp_path / "again")
    before, after = (
        load_file(llm / "model.safetensors") for llm in (bundle.llm_dir, tmp_path / "again" / "llm")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)

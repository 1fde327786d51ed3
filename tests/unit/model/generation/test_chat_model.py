"""From a run, a checkpoint or a file to a model that answers, with the run's own settings."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from mgpt4_hpc.errors import ConfigError, WeightsError
from mgpt4_hpc.model.generation.chat_model import ChatModel, find_source, with_distinct_names
from mgpt4_hpc.model.generation.generate import Sampling
from mgpt4_hpc.prompts import Dialogue, Turn
from mgpt4_hpc.run_dir import RunDir
from tests.support.tiny_world import REFERENCE, TinyWorld
from tests.support.trained import make_trained_run


@pytest.fixture(scope="module")
def run(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_trained_run(tiny_world, tmp_path_factory.mktemp("runs") / "one")


def test_run_checkpoint_and_file_are_the_same_source(run: RunDir, tiny_world: TinyWorld) -> None:
    checkpoint = run.checkpoints / "step-00000012"
    sources = [
        find_source(path) for path in (run.path, checkpoint, checkpoint / "projector.safetensors")
    ]
    assert sources[0] == sources[1] == sources[2]
    source = sources[0]
    assert (source.step, source.name) == (12, "one step-00000012")
    assert source.weights == tiny_world.weights and source.template.name == "vicuna_v0"


def test_sources_of_one_name_are_told_apart(
    run: RunDir, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    weights = str(tiny_world.weights)
    checkpoint = run.checkpoints / "step-00000012"
    files = [tmp_path / place / "projector.safetensors" for place in ("a", "b", "c/b")]
    for file in files:
        file.parent.mkdir(parents=True)
        shutil.copy(checkpoint / file.name, file)
    copied = tmp_path / "runs" / "one"
    shutil.copytree(run.path, copied)

    def names(*paths: Path) -> list[str]:
        return [
            s.name
            for s in with_distinct_names([find_source(path, weights=weights) for path in paths])
        ]

    assert names(run.path, files[0]) == ["one step-00000012", "projector.safetensors"]
    assert names(*files[:2]) == ["a/projector.safetensors", "b/projector.safetensors"]
    assert names(*files[1:]) == ["b/projector.safetensors", "b/projector.safetensors (2)"]
    there = f"{run.path.parent.name}/one step-00000012"
    assert names(run.path, copied) == [there, "runs/one step-00000012"]
    assert names(run.path, checkpoint) == ["one step-00000012"] * 2  # it is the same


def test_the_newest_checkpoint_of_a_run_talks(tiny_world: TinyWorld, tmp_path: Path) -> None:
    run = make_trained_run(tiny_world, tmp_path / "one")
    shutil.copytree(run.checkpoints / "step-00000012", run.checkpoints / "step-00000020")
    (run.checkpoints / "step-00000030").mkdir()  # killed before its manifest
    projector = find_source(run.path).projector
    assert projector is not None and projector.parent.name == "step-00000020"


def test_a_run_speaks_its_own_format(tiny_world: TinyWorld, tmp_path: Path) -> None:
    text = {"prompt": "<user>{}<bot>", "end_symbol": "<end>"}
    run = make_trained_run(tiny_world, tmp_path / "own", text=text)
    assert find_source(run.path).template.prompt == "<user>{}<bot>"
    assert find_source(run.path, template="llama2").template.end_symbol == "</s>"
    with pytest.raises(ConfigError, match="klingon"):
        find_source(run.path, template="klingon")


def test_a_bundle_talks_with_its_own_projector(tiny_world: TinyWorld, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(tiny_world.weights, bundle)
    shutil.copy(REFERENCE / "pretrained_minigpt4.pth", bundle)
    source = find_source(None, weights=str(bundle))
    assert source.projector is None and source.template.name == "vicuna_v0"
    assert ChatModel(source, device="cpu").source.name == "bundle"
    bare = find_source(None, weights=str(tiny_world.weights))
    with pytest.raises(WeightsError, match="no trained projector"):
        ChatModel(bare, device="cpu")


def test_another_projector_answers_otherwise_and_back_again(
    run: RunDir, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    other = find_source(make_trained_run(tiny_world, tmp_path / "two", seed=5).path)
    chat_model = ChatModel(find_source(run.path), device="cpu")
    size = chat_model.image_size
    images = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8)
    features = [chat_model.encode(images)]
    prompt = chat_model.prompt(Dialogue((Turn((None, "What is this?"), None),)))

    def answer() -> str:
        return chat_model.answers([prompt], features, Sampling(max_new_tokens=12))[0].text

    first = answer()
    chat_model.use(other)
    assert answer() != first and chat_model.source is other
    chat_model.use(find_source(run.path))
    assert answer() == first
    max_answer_tokens = chat_model.max_answer_tokens(prompt)
    assert max_answer_tokens is not None and 300 < max_answer_tokens < 512


def test_without_weights_a_file_is_of_no_use(run: RunDir, tmp_path: Path) -> None:
    bare = tmp_path / "bare.safetensors"
    shutil.copy(run.checkpoints / "step-00000012" / "projector.safetensors", bare)
    with pytest.raises(WeightsError, match="nothing says which weights"):
        find_source(bare)
    gone = dataclasses.replace(find_source(run.path), weights=tmp_path / "gone")
    with pytest.raises(WeightsError, match="no bundle at"):
        ChatModel(gone, device="cpu")

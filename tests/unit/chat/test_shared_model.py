"""Several visitors and checkpoints around one model: whose turn it is, and who said what."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.chat.engine import Closing
from mgpt4_hpc.chat.session import ChatSession
from mgpt4_hpc.chat.shared_model import MAX_IMAGES, SharedModel
from mgpt4_hpc.errors import ConfigError, DataError
from mgpt4_hpc.model.generation.chat_model import ChatModel, ModelSource, find_source
from mgpt4_hpc.model.generation.sampling import Sampling
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run

SHORT = Sampling(max_new_tokens=8)


@pytest.fixture(scope="module")
def sources(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> list[ModelSource]:
    folder = tmp_path_factory.mktemp("served")
    return [
        find_source(make_trained_run(tiny_world, folder / name, seed=seed).path)
        for seed, name in enumerate(("one", "two"))
    ]


@pytest.fixture
def shared_model(sources: list[ModelSource]) -> SharedModel:
    return SharedModel(ChatModel(sources[0], device="cpu"), sources)


def alone(source: ModelSource, image: Path, *questions: str) -> list[str]:
    session = ChatSession(ChatModel(source, device="cpu"), SHORT)
    session.add_image(image)
    return ["".join(session.ask(question)) for question in questions]


@pytest.mark.slow
def test_two_visitors_with_two_checkpoints_in_turns(
    shared_model: SharedModel, sources: list[ModelSource], image: Path, other_image: Path
) -> None:
    visitors = [shared_model.visitor(), shared_model.visitor()]
    for visitor, shown in zip(visitors, (image, other_image), strict=True):
        shared_model.show(visitor, shown.read_bytes(), shown.name, "")
    said: list[list[str]] = [[], []]
    for question in ("What is this?", "And why?"):
        for index, name in enumerate(shared_model.speakers):
            said[index].append("".join(shared_model.ask(visitors[index], name, question, SHORT)))
    assert said[0] == alone(sources[0], image, "What is this?", "And why?")
    assert said[1] == alone(sources[1], other_image, "What is this?", "And why?")


def test_another_checkpoint_begins_anew_with_the_same_image(
    shared_model: SharedModel, sources: list[ModelSource], image: Path
) -> None:
    visitor = shared_model.visitor()
    shared_model.show(visitor, image.read_bytes(), image.name, "")
    first, second = shared_model.speakers
    "".join(shared_model.ask(visitor, first, "What is this?", SHORT))
    said = "".join(shared_model.ask(visitor, second, "And why?", SHORT))
    assert [said] == alone(sources[1], image, "And why?")
    assert [turn.question for turn in visitor.session.conversation.turns] == ["And why?"]


def test_an_abandoned_answer_gives_the_model_back(shared_model: SharedModel, image: Path) -> None:
    visitor = shared_model.visitor()
    shared_model.show(visitor, image.read_bytes(), image.name, "")
    pieces = shared_model.ask(visitor, shared_model.speakers[0], "What is this?", SHORT)
    next(pieces)
    pieces.close()
    assert "".join(shared_model.ask(visitor, shared_model.speakers[0], "What is this?", SHORT))
    assert len(visitor.session.conversation.turns) == 1


def test_a_closing_room_breaks_off(shared_model: SharedModel, image: Path) -> None:
    visitor = shared_model.visitor()
    shared_model.show(visitor, image.read_bytes(), image.name, "")
    pieces = shared_model.ask(visitor, shared_model.speakers[0], "What is this?", SHORT)
    next(pieces)
    shared_model.close()
    with pytest.raises(Closing):
        next(pieces)
    with pytest.raises(Closing):
        next(shared_model.ask(visitor, shared_model.speakers[0], "What is this?", SHORT))


def test_a_run_may_delete_what_is_served(
    tiny_world: TinyWorld, tmp_path: Path, image: Path
) -> None:
    sources = [
        find_source(make_trained_run(tiny_world, tmp_path / str(n), seed=n).path) for n in (0, 1)
    ]
    shared_model = SharedModel(ChatModel(sources[0], device="cpu"), sources)
    for source in sources:
        assert source.projector is not None
        source.projector.unlink()
    visitor = shared_model.visitor()
    shared_model.show(visitor, image.read_bytes(), image.name, "")
    for name in reversed(shared_model.speakers):
        assert "".join(shared_model.ask(visitor, name, "What is this?", SHORT))


@pytest.mark.slow
def test_two_runs_of_one_name(tiny_world: TinyWorld, tmp_path: Path, image: Path) -> None:
    sources = [
        find_source(make_trained_run(tiny_world, tmp_path / place / "run", seed=seed).path)
        for seed, place in enumerate(("one", "two"))
    ]
    shared_model = SharedModel(ChatModel(sources[0], device="cpu"), [*sources, sources[0]])
    assert shared_model.speakers == ["one/run step-00000012", "two/run step-00000012"]
    for source, name in zip(sources, shared_model.speakers, strict=True):
        visitor = shared_model.visitor()
        shared_model.show(visitor, image.read_bytes(), image.name, "")
        said = "".join(shared_model.ask(visitor, name, "What is this?", SHORT))
        assert [said] == alone(source, image, "What is this?")


def test_what_cannot_be_served_together(
    shared_model: SharedModel, sources: list[ModelSource], tiny_world: TinyWorld, tmp_path: Path
) -> None:
    run = make_trained_run(tiny_world, tmp_path / "eight", model__ln_vision="identity")
    other = find_source(run.path)
    with pytest.raises(ConfigError, match=r"cannot share one model: .*ln_vision identity"):
        SharedModel(ChatModel(sources[0], device="cpu"), [sources[0], other])
    with pytest.raises(ConfigError, match="no checkpoint 'three' is served"):
        next(shared_model.ask(shared_model.visitor(), "three", "What?", SHORT))


def test_too_many_images(shared_model: SharedModel, image: Path) -> None:
    visitor = shared_model.visitor()
    visitor.pictures = [""] * MAX_IMAGES
    with pytest.raises(DataError, match="one image too many"):
        shared_model.show(visitor, image.read_bytes(), "last.jpg", "")

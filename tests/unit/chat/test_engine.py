"""Who waits, who is answered, who is left out; the answers themselves are GrowingBatch's."""

from __future__ import annotations

import dataclasses
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mgpt4_hpc.chat.engine import MAX_ROWS, MAX_WAITING, Busy, Closing, Engine, Event, Request
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.generation.answer import Answer
from mgpt4_hpc.model.generation.chat_model import ChatModel, Trained, find_source
from mgpt4_hpc.model.generation.growing_batch import GrowingBatch
from mgpt4_hpc.model.generation.sampling import Sampling
from mgpt4_hpc.model.nn.lora import SavedLora, add_lora, lora_parameters
from mgpt4_hpc.prompts import Dialogue, Turn
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run

WAIT_S = 60


@pytest.fixture(scope="module")
def model(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    run = make_trained_run(tiny_world, tmp_path_factory.mktemp("engine") / "one")
    return ChatModel(find_source(run.path), device="cpu")


@pytest.fixture
def engine(model: ChatModel) -> Iterator[Engine]:
    running = Engine(model)
    yield running
    running.close()


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each step."""
    seen: list[int] = []
    step = GrowingBatch.step

    def noting(batch: GrowingBatch) -> None:
        seen.append(len(batch.rows))
        step(batch)

    monkeypatch.setattr(GrowingBatch, "step", noting)
    return seen


class Asked(Request):
    """A request whose events can be waited for."""

    def __init__(self, model: ChatModel, text: str = "Hello", tokens: int = 8, **others) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        super().__init__(
            others.pop("trained", None) or model.read(model.source),
            model.prompt(Dialogue((Turn((text,), None),))),
            others.pop("features", lambda: model.encode_each([])),
            Sampling(max_new_tokens=tokens),
            self.events.put,
            in_pieces=False,
            **others,
        )

    def wait(self) -> Event:
        return self.events.get(timeout=WAIT_S)

    def answer(self) -> Answer:
        event = self.wait()
        assert isinstance(event, Answer), event
        return event


def held(engine: Engine) -> threading.Event:
    """Keep the model's thread from its next step until the event is set."""
    go, reached = threading.Event(), threading.Event()

    def hold() -> None:
        reached.set()
        go.wait(WAIT_S)

    threading.Thread(target=engine.call, args=(hold,), daemon=True).start()
    assert reached.wait(WAIT_S)
    return go


@pytest.mark.slow
def test_those_who_find_no_room_wait_and_the_next_are_refused(
    engine: Engine, model: ChatModel, widths: list[int]
) -> None:
    go = held(engine)
    waiting = [Asked(model, tokens=3) for _ in range(MAX_WAITING)]
    for request in waiting:
        engine.submit(request)
    with pytest.raises(Busy):
        engine.submit(Asked(model))
    engine.cancel(waiting[0])
    last = Asked(model, tokens=3)
    engine.submit(last)  # where the cancelled one was
    go.set()
    answers = {request.answer() for request in (*waiting[1:], last)}
    assert len(answers) == 1 and max(widths) == MAX_ROWS
    assert waiting[0].events.empty()


@pytest.mark.slow
def test_a_cancelled_answer_frees_its_row(engine: Engine, model: ChatModel) -> None:
    endless = [Asked(model, tokens=400) for _ in range(MAX_ROWS)]
    go = held(engine)
    for request in endless:
        engine.submit(request)
    behind = Asked(model)
    engine.submit(behind)
    for request in endless[:2]:
        engine.cancel(request)
    go.set()
    behind.answer()
    assert all(request.events.empty() for request in endless[2:])
    for request in endless:
        engine.cancel(request)


def test_a_cache_that_is_full_lets_nobody_else_in(model: ChatModel, widths: list[int]) -> None:
    first, second = Asked(model), Asked(model)
    length = model.prompt_length(first.prompt) + 8
    engine = Engine(model, max_columns=2 * length - 1)
    go = held(engine)
    engine.submit(first)
    engine.submit(second)
    go.set()
    assert first.answer() == second.answer()
    assert set(widths) == {1}
    engine.close()


def test_one_that_fails_leaves_the_others_alone(
    engine: Engine, model: ChatModel, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> torch.Tensor:
        raise MemoryError("no room")

    go = held(engine)
    fine, bad, misfit = Asked(model), Asked(model, features=broken), Asked(model, tokens=10**6)
    for request in (fine, bad, misfit):
        engine.submit(request)
    go.set()
    alone = Asked(model)
    assert isinstance(bad.wait(), MemoryError) and "no room" in caplog.text
    assert isinstance(misfit.wait(), ConfigError)
    engine.submit(alone)
    assert fine.answer() == alone.answer()


def test_a_step_that_fails_ends_its_answers_and_not_the_server(
    engine: Engine, model: ChatModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(GrowingBatch, "step", lambda batch: 1 / 0)
        lost = Asked(model)
        engine.submit(lost)
        assert isinstance(lost.wait(), ZeroDivisionError)
    after = Asked(model)
    engine.submit(after)
    after.answer()


def test_checkpoints_with_lora_answer_side_by_side(tiny_world: TinyWorld, tmp_path: Path) -> None:
    source = find_source(make_trained_run(tiny_world, tmp_path / "run").path)
    model = ChatModel(source, device="cpu")
    plain = model.read(source)
    layers = ("q_proj", "v_proj")
    add_lora(model.model.language_model, rank=2, alpha=4, target_modules=layers, seed=0)
    trained = []
    for seed in range(2):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            name: torch.randn(parameter.shape, generator=generator)
            for name, parameter in lora_parameters(model.model.language_model).items()
        }
        lora = SavedLora(tensors, 2, 4, layers, f"seed {seed}")
        trained.append(Trained(dataclasses.replace(source, name=str(seed)), plain.projector, lora))
    alone = []
    for checkpoint in trained:
        model.use(checkpoint)
        layout = Asked(model).prompt
        alone.append(model.answers([layout], [model.encode_each([])], Sampling(8))[0])
    assert alone[0] != alone[1]
    engine = Engine(model)
    asked = [Asked(model, trained=trained[number % 2]) for number in range(6)]
    go = held(engine)
    for request in asked:
        engine.submit(request)
    go.set()
    assert [request.answer() for request in asked] == alone * 3
    engine.close()


def test_a_stop_ends_all(engine: Engine, model: ChatModel) -> None:
    go = held(engine)
    growing = Asked(model, tokens=400)
    engine.submit(growing)
    engine.close()
    go.set()
    assert isinstance(growing.wait(), Closing)
    with pytest.raises(Closing):
        engine.submit(Asked(model))
    with pytest.raises(Closing):
        engine.call(lambda: None)

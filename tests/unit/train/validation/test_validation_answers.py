"""What a model under training is asked, what is shown of it, and that a stop breaks it off."""

from __future__ import annotations

import errno
import io
import os
from typing import Any

import pytest
from PIL import Image

from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.data.reading.reader import RawSample, SampleReader
from mgpt4_hpc.data.sources.prepare import prepare_source
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.model.nn.minigpt4 import build_model
from mgpt4_hpc.telemetry import tags
from mgpt4_hpc.train.loop import train
from mgpt4_hpc.train.state import Ending
from mgpt4_hpc.train.validation.validation_answers import HeldOutAnswers, ValidationAnswers
from tests.support.tiny_world import TinyWorld
from tests.unit.train.test_loop import Notes, make_loop

ALONE = Ranks(0, 0, 1, 1)


@pytest.fixture(scope="module")
def parts(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    settings = tiny_world.config(
        2,
        data__val_fraction=0.4,
        train__eval_every_steps=5,
        train__eval_suites=["failure", "caption"],
        train__eval_images=3,
        train__eval_answer_tokens=7,
    )
    config = RunConfig.model_validate(settings)
    (source,) = config.data.sources
    work = tmp_path_factory.mktemp("index")
    bundle = open_bundle(tiny_world.weights)
    return {
        "config": config,
        "indexes": {source.name: str(prepare_source(source.name, source.path, None, work))},
        "bundle": bundle,
        "model": build_model(bundle).train(),
    }


@pytest.mark.slow
def test_scores_cards_and_texts(parts: dict[str, Any]) -> None:
    ask = HeldOutAnswers(**parts, ranks=ALONE)
    said = ask()
    assert said is not None
    assert {"detail_failing", "poem_failing", "caption_cider", "caption_bleu4"} <= set(said.scores)
    failing = (said.scores["detail_failing"] + said.scores["poem_failing"]) / 2
    assert said.headlines == {"failure": -failing, "caption": said.scores["caption_cider"]}
    assert set(said.cards) == set(said.texts) == {"detail", "poem", "caption"}
    for task, png in said.cards.items():
        picture = Image.open(io.BytesIO(png))
        assert picture.format == "PNG" and picture.width > 3 * 224
        rows = said.texts[task].splitlines()
        assert len(rows) == 2 + 2 + 3 and all("cc_sbu_align/" in row for row in rows[4:])
    assert ask() == said


def test_two_ranks_say_what_one_says(parts: dict[str, Any]) -> None:
    class Half(Ranks):
        """One of two, that keeps what it would send."""

        def any_says(self, yes: bool) -> bool:
            return yes

        def gather(self, value: Any) -> list[Any]:
            sent.append(value)
            return list(sent)

    sent: list[Any] = []
    whole = HeldOutAnswers(**parts, ranks=ALONE)()
    other = HeldOutAnswers(**parts, ranks=Half(1, 1, 2, 2))()
    assert other is not None and not other.scores
    both = HeldOutAnswers(**parts, ranks=Half(0, 0, 2, 2))()
    assert both == whole


@pytest.mark.parametrize("after", [0, 1, 9])
def test_a_stop_breaks_it_off_between_two_tokens(parts: dict[str, Any], after: int) -> None:
    asked = 0

    def give_up() -> bool:
        nonlocal asked
        asked += 1
        return asked > after

    assert HeldOutAnswers(**parts, ranks=ALONE, give_up=give_up)() is None
    assert asked == after + 1


def test_a_stop_breaks_it_off_between_two_images(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, read = SampleReader.read, []

    def noted(reader: SampleReader, source_id: int, sample_id: int) -> RawSample:
        read.append(sample_id)
        return real(reader, source_id, sample_id)

    monkeypatch.setattr(SampleReader, "read", noted)
    stops = True
    ask = HeldOutAnswers(**parts, ranks=ALONE, give_up=lambda: stops and len(read) == 1)
    assert ask() is None and len(read) == 1
    stops = False
    said = ask()
    assert said is not None and len(read) == 1 + 3
    assert said.texts["poem"].count("cc_sbu_align/") == 3


def test_an_image_that_storage_keeps_back_is_left_out_after_seconds(
    parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real, failures, slept = os.pread, [errno.EIO] * 4, []

    def stumbles(fd: int, length: int, offset: int) -> bytes:
        if failures:
            raise OSError(failures.pop(), "Input/output error")
        return real(fd, length, offset)

    monkeypatch.setattr(os, "pread", stumbles)
    options = {**SampleReader.__init__.__kwdefaults__, "sleep": slept.append}
    monkeypatch.setattr(SampleReader.__init__, "__kwdefaults__", options)
    said = HeldOutAnswers(**parts, ranks=ALONE)()
    assert said is not None and said.texts["poem"].count("cc_sbu_align/") == 2
    assert sum(slept) < 3
    assert "WARNING: nothing is asked about an image" in capsys.readouterr().out


def test_the_loop_records_loss_and_answers_together() -> None:
    notes: Notes = []
    loop = make_loop(notes)
    loop.evaluate = lambda: 2.0
    loop.answer = lambda: ValidationAnswers(
        {"detail_failing": 0.5}, {"detail": b"png"}, {"detail": "text"}
    )
    loop.recorder.answered = lambda *said: notes.append(said)  # type: ignore[method-assign]
    assert train(loop)[0] is Ending.FINISHED
    assert ("log", 3, {tags.VAL_LOSS: 2.0, "eval/detail_failing": 0.5}) in notes
    assert (3, {"detail": b"png"}, {"detail": "text"}) in notes


def test_the_loop_stops_when_the_answers_are_broken_off() -> None:
    notes: Notes = []
    loop = make_loop(notes)
    loop.evaluate = lambda: pytest.fail("the stop is overdue")
    loop.answer = lambda: None
    assert train(loop)[0] is Ending.STOPPED
    assert loop.state.step == 3 and not [n for n in notes if tags.VAL_LOSS in str(n)]

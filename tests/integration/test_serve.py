"""``mgpt4 serve`` on the demo's checkpoints: in a browser, under load, stopped while it answers."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client, handle_file
from gradio_client.utils import StatusUpdate

from mgpt4_hpc.chat.session import ChatSession
from mgpt4_hpc.model.generation.chat_model import ChatModel, find_source
from mgpt4_hpc.model.generation.sampling import Sampling
from mgpt4_hpc.resources import resolve_path
from tests.support import browser as browsers
from tests.support.browser import Browser
from tests.support.runs import wait_until
from tests.support.serving import Serving

DESCRIBE, COLOUR = "Describe this image in detail.", "What colour is it?"
LIMIT = 60
USERS = 20


@pytest.fixture(scope="module")
def serving(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    server = Serving(
        tmp_path_factory.mktemp("serve"),
        *(trained / "toy-stage2", trained / "toy-stage1", "--max-new-tokens", LIMIT),
    )
    yield server
    server.close()


@pytest.fixture(scope="module")
def alone(trained: Path) -> Iterator[Alone]:
    yield Alone(trained)


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if not browsers.is_installed():
        pytest.skip("no Chromium here: tools/install-browser")
    window = Browser(tmp_path / "profile")
    yield window
    window.close()


class Alone:
    """What the checkpoints say to somebody who has them for himself, without any server."""

    def __init__(self, runs: Path) -> None:
        self.sources = {name: find_source(runs / name) for name in ("toy-stage1", "toy-stage2")}
        self.chat_model = ChatModel(self.sources["toy-stage2"], device="cpu")

    def says(self, name: str, image: Path, *questions: str) -> list[str]:
        self.chat_model.use(self.sources[name])
        session = ChatSession(self.chat_model, Sampling(max_new_tokens=LIMIT))
        session.add_image(image)
        return ["".join(session.ask(question)) for question in questions]


def scene(number: int) -> Path:
    return Path(resolve_path("toy:heldout")) / "image" / f"{number:03d}.jpg"


def test_in_a_browser(
    serving: Serving, alone: Alone, browser: Browser, trained: Path, tmp_path: Path
) -> None:
    base = serving.url
    first, again = alone.says("toy-stage2", scene(3), DESCRIBE, COLOUR)
    (other,) = alone.says("toy-stage1", scene(3), DESCRIBE)
    browser.open(base)
    assert not browser.asks_before_leaving
    browser.upload(scene(3))
    browser.ask(DESCRIBE)
    browser.wait(lambda: browser.answers == [first])
    browser.ask(COLOUR)
    browser.wait(lambda: browser.answers == [first, again])
    assert browser.questions == [DESCRIBE, COLOUR] and browser.images == 1
    assert browser.asks_before_leaving
    picture = Path(os.environ.get("MGPT4_SCREENSHOT", tmp_path / "serve.png"))
    browser.driver.save_screenshot(str(picture))
    assert 5_000 < picture.stat().st_size < 300_000

    # Another checkpoint has said nothing yet, and looks at the same image.
    browser.choose("toy-stage1")
    browser.ask(DESCRIBE)
    browser.wait(lambda: [a.split() for a in browser.answers] == [other.split()])
    assert browser.questions == [DESCRIBE] and browser.images == 1

    # What cannot be used is said in words, and the question stays to be mended.
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(scene(0).read_bytes()[:500])
    browser.upload(torn)
    browser.ask("<b>And this?</b>")
    browser.wait(lambda: "torn.jpg cannot be used" in browser.notes)
    browser.wait(lambda: [a.split() for a in browser.answers] == [other.split()])
    assert browser.texts(".error") == []  # an overlay would hide the conversation
    assert browser.find("#question textarea").get_attribute("value") == "<b>And this?</b>"
    browser.ask("")
    browser.wait(lambda: "<b>And this?</b>" in browser.questions)

    assert browser.kept == []
    assert browser.requests_outside(base) == []
    assert browser.faults() == []
    assert not serving.outside.read_text()
    wait_until(lambda: serving.uploads == [], 20, f"uploads are deleted: {serving.uploads}")


def test_twenty_at_once(serving: Serving, alone: Alone) -> None:
    crowd(serving, alone, seconds=0)


@pytest.mark.soak
def test_twenty_for_a_minute(serving: Serving, alone: Alone) -> None:
    crowd(serving, alone, seconds=15)  # whatever grows once has grown
    before = serving.memory_mib
    crowd(serving, alone, seconds=60)
    assert serving.memory_mib < before + 64


def crowd(serving: Serving, alone: Alone, *, seconds: float) -> None:
    """Every user asks about an own image, and gets what one gets who is alone."""
    questions = (DESCRIBE, COLOUR)
    speakers = ["toy-stage2" if user % 4 else "toy-stage1" for user in range(USERS)]
    expected = [
        alone.says(speaker, scene(user), *questions) for user, speaker in enumerate(speakers)
    ]
    assert len({answers[0] for answers in expected}) >= USERS - 4
    ends = time.monotonic() + seconds

    def use(user: int) -> None:
        visitor = Visitor(serving.url)
        while True:
            visitor.ask(speakers[user], "", None, anew=True)
            found = [visitor.ask(speakers[user], DESCRIBE, scene(user))]
            found.append(visitor.ask(speakers[user], COLOUR))
            # Gradio takes a line's indentation away.
            assert [a.split() for a in found] == [a.split() for a in expected[user]], f"user {user}"
            if time.monotonic() >= ends:
                return

    with ThreadPoolExecutor(USERS) as pool:
        list(pool.map(use, range(USERS)))
    assert "Traceback" not in serving.told, serving.told
    assert serving.uploads == []


class Visitor:
    """One person at the page's own interface."""

    def __init__(self, url: str, **options: object) -> None:
        self._new = partial(Client, url, verbose=False, download_files=False, **options)
        self.client = self._new()
        self.speakers = self.client.view_api(return_format="dict", print_info=False)[
            "named_endpoints"
        ]["/ask"]["parameters"][1]["type"]["enum"]

    def ask(
        self, speaker: str, question: str, image: Path | None = None, *, anew: bool = False
    ) -> str:
        """The answer; ``anew`` only begins another conversation."""
        if anew:
            self.client.reset_session()
            return ""
        talk, _ = self.send(speaker, question, image)
        (said,) = talk[-1]["content"]
        return unescape(said["text"])

    def send(self, speaker: str, question: str, image: Path | None = None) -> tuple[Any, Any]:
        """The conversation and the question's box afterwards."""
        files = [handle_file(str(image))] if image else []
        message = {"text": question, "files": files}
        return self.client.predict(
            message, self.named(speaker), *(0, 0.9, 1, 1, LIMIT, 42), api_name="/ask"
        )

    def named(self, speaker: str) -> str:
        return next(name for name in self.speakers if name.startswith(speaker))

    def begin(self, speaker: str, question: str, image: Path):
        """Ask, and return once the answer has begun."""
        message = {"text": question, "files": [handle_file(str(image))]}
        job = self.client.submit(
            message, self.named(speaker), *(0, 0.9, 1, 1, 250, 42), api_name="/ask"
        )
        wait_until(lambda: len(job.outputs()) > 1 or job.done(), 30, "an answer begins")
        return job


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the page's notes say; the client reads them, and forgets each at the next message."""
    said: list[str] = []

    def noting(**fields: Any) -> StatusUpdate:
        if fields.get("log"):
            said.append(unescape(fields["log"][0]))
        return StatusUpdate(**fields)

    monkeypatch.setattr("gradio_client.utils.StatusUpdate", noting)
    return said


def test_refusals_in_words(serving: Serving, notes: list[str], tmp_path: Path) -> None:
    visitor = Visitor(serving.url)
    bomb = tmp_path / "bomb.png"
    shutil.copy(make_bomb(tmp_path), bomb)
    text = tmp_path / "notes.jpg"
    text.write_text("<html>404</html>")
    long = "word " * 600
    for question, image, told in (
        ("What is it?", None, "no image to talk about"),
        (" ", scene(0), "the question is empty"),
        ("What is it?", text, "notes.jpg cannot be used: its image is a web page"),
        ("What is it?", bomb, "bomb.png has far too many pixels, images may have 50 million"),
        (long, scene(0), "fills the language model"),
    ):
        talk, box = visitor.send("toy-stage2", question, image)
        assert len(notes) == 1 and told in notes[0], notes
        assert "/image" not in notes[0] and "/reset" not in notes[0]
        assert box["text"] == question and all(turn["role"] == "user" for turn in talk)
        notes.clear()
    huge = tmp_path / "huge.jpg"
    with huge.open("wb") as file:
        file.truncate(30 * 2**20)
    with pytest.raises(Exception, match=r"413|larger|maximum|exceed"):
        visitor.ask("toy-stage2", "What is it?", huge)
    wait_until(lambda: serving.uploads == [], 20, f"uploads are deleted: {serving.uploads}")
    assert "Traceback" not in serving.told, serving.told


def make_bomb(folder: Path) -> Path:
    """A PNG of 50 kB with 400 million pixels."""
    from PIL import Image

    path = folder / "large.png"
    Image.new("1", (20_000, 20_000)).save(path)
    return path


def test_a_stop_in_the_middle_of_an_answer(trained: Path, tmp_path: Path) -> None:
    server = Serving(tmp_path / "s", trained / "toy-stage1", MGPT4_SERVE_TOKEN="open-sesame-42")
    try:
        assert server.url.endswith("/?token=open-sesame-42")
        base = server.url.partition("?")[0]
        with pytest.raises(Exception, match="credentials"):
            Client(base, verbose=False)
        entitled = {"headers": {"Authorization": "Bearer open-sesame-42"}}
        # Somebody who breaks off does not keep the model from the next.
        Visitor(base, **entitled).begin("toy-stage1", DESCRIBE, scene(0)).cancel()
        visitor = Visitor(base, **entitled)
        visitor.begin("toy-stage1", DESCRIBE, scene(1))
        assert server.stop(signal.SIGTERM) == 0, server.told
        assert "Traceback" not in server.told and server.told.endswith("stopped\n"), server.told
        assert server.uploads == [] and not list(server.temporary.glob("mgpt4-*"))
    finally:
        server.close()

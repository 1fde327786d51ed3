"""A conversation with a (random) model: it remembers, resumes, and refuses with reasons."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.chat.session import ChatSession
from mgpt4_hpc.chat.shared_model import PAGE
from mgpt4_hpc.errors import ConfigError, DataError
from mgpt4_hpc.model.generation.chat_model import ChatModel
from mgpt4_hpc.model.generation.sampling import Sampling


def session(chat_model: ChatModel, **sampling: float) -> ChatSession:
    return ChatSession(chat_model, Sampling(**{"max_new_tokens": 10, **sampling}))


def ask(chat: ChatSession, question: str) -> str:
    return "".join(chat.ask(question))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_resumed_conversation_goes_on_like_the_first(
    chat_model: ChatModel, image: Path, other_image: Path, tmp_path: Path, temperature: float
) -> None:
    first = session(chat_model, temperature=temperature)
    first.add_image(image)
    ask(first, "What is this?")
    first.add_image(other_image)
    first.save(tmp_path / "talk.json")
    on = ask(first, "And this?")
    second = session(chat_model, temperature=temperature)
    second.resume(tmp_path / "talk.json")
    assert ask(second, "And this?") == on
    assert second.conversation == first.conversation


def test_a_reset_conversation_is_a_fresh_one(chat_model: ChatModel, image: Path) -> None:
    chat = session(chat_model)
    chat.add_image(image)
    fresh = ask(chat, "What is this?")
    assert ask(chat, "What is this?") != fresh
    chat.reset()
    chat.add_image(image)
    assert ask(chat, "What is this?") == fresh


def test_the_streamed_pieces_are_what_is_remembered(chat_model: ChatModel, image: Path) -> None:
    chat = session(chat_model, max_new_tokens=30)
    chat.add_image(image)
    text = ask(chat, "What is this?")
    assert chat.conversation.turns[0].answer == text
    assert chat.conversation.turns[0].images == (str(image.absolute()),)


def test_an_abandoned_answer_is_forgotten(chat_model: ChatModel, image: Path) -> None:
    chat = session(chat_model)
    chat.add_image(image)
    pieces = chat.ask("What is this?")
    next(pieces)
    pieces.close()
    assert chat.conversation.turns == [] and len(chat.conversation.pending) == 1


def test_the_page_asks_for_an_image(chat_model: ChatModel) -> None:
    with pytest.raises(ConfigError, match="no image"):
        ask(ChatSession(chat_model, Sampling(), PAGE), "What is this?")


@pytest.mark.slow
def test_a_full_conversation_says_so(chat_model: ChatModel, image: Path) -> None:
    chat = session(chat_model, max_new_tokens=300)
    chat.add_image(image)
    with pytest.raises(ConfigError, match="fills the language model's context"):
        ask(chat, "word " * 600)
    chat.conversation.add("word " * 70, "yes")
    prompt = chat_model.prompt(chat.conversation.dialogue("Why?"))
    max_answer_tokens = chat_model.max_answer_tokens(prompt)
    assert max_answer_tokens is not None and 16 <= max_answer_tokens < 300
    assert ask(chat, "Why?")
    assert chat.context_is_limit


def test_bad_pictures_are_refused_before_they_are_decoded(
    chat_model: ChatModel, image: Path, tmp_path: Path
) -> None:
    chat = session(chat_model)
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(image.read_bytes()[:300])
    with pytest.raises(DataError, match=r"torn\.jpg cannot be used"):
        chat.add_image(torn)
    with pytest.raises(DataError, match=r"900000000 pixels|30000x30000"):
        chat.add_image(bomb(tmp_path / "bomb.png"))
    with pytest.raises(DataError, match="No such file"):
        chat.add_image(tmp_path / "none.jpg")
    with pytest.raises(DataError, match="is a folder"):
        chat.add_image(tmp_path)
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(60 * 2**20)
    with pytest.raises(DataError, match="60 MiB"):
        chat.add_image(tmp_path / "huge.jpg")
    assert chat.conversation.images == []


def bomb(path: Path) -> Path:
    """A PNG of a few hundred bytes whose header promises 900 million pixels."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(100_000)))
        + chunk(b"IEND", b"")
    )
    return path

"""How turns are strung together, and that a conversation survives its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.chat.conversation import Conversation
from mgpt4_hpc.chat_format import TemplateFormat
from mgpt4_hpc.errors import ConfigError, DataError
from mgpt4_hpc.prompts import IMAGE_SLOT, TEMPLATES, Template

VICUNA, LLAMA2 = TEMPLATES["vicuna_v0"], TEMPLATES["llama2"]
CHATML = Template("chatml", "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>")


def text_of(talk: Conversation, question: str) -> str:
    """What the model reads, with a mark for each image; BOS is 0."""
    runs = TemplateFormat(talk.template, lambda text: [*map(ord, text)], 0)
    layout = runs.lay_out(talk.dialogue(question))
    return "".join(
        IMAGE_SLOT if run is None else "".join(map(chr, run.ids)) for run in layout
    ).removeprefix("\0")


@pytest.mark.parametrize("template", [VICUNA, LLAMA2, CHATML], ids=lambda t: t.name)
def test_the_first_question_is_the_prompt_of_training(template: Template) -> None:
    talk = Conversation(template, pending=["a.jpg"])
    assert text_of(talk, "Describe this.") == template.render("Describe this.")


def test_later_turns_follow_the_answers() -> None:
    talk = Conversation(VICUNA, pending=["a.jpg"])
    talk.add("What is this?", "A cat.")
    talk.pending.append("b.jpg")
    assert text_of(talk, "And this?") == (
        "###Human: <Img><ImageHere></Img> What is this? ###Assistant: A cat."
        "###Human: <Img><ImageHere></Img> And this? ###Assistant: "
    )
    assert talk.images == ["a.jpg", "b.jpg"]


def test_the_end_symbol_stands_between_turns() -> None:
    talk = Conversation(LLAMA2, pending=["a.jpg"])
    talk.add("What?", "A cat.")
    assert (
        text_of(talk, "Why?")
        == "[INST] <Img><ImageHere></Img> What? [/INST] A cat.</s>[INST] Why? [/INST] "
    )


def test_two_images_with_one_question() -> None:
    talk = Conversation(VICUNA, pending=["a.jpg", "b.jpg"])
    assert talk.dialogue("Which?").num_images == 2
    assert text_of(talk, "Which?").count("<Img><ImageHere></Img> ") == 2


def test_saved_and_loaded_it_is_the_same(tmp_path: Path) -> None:
    talk = Conversation(VICUNA, pending=["a.jpg"])
    talk.add("What?", "Eine Katze \u2026 \U0001f408")
    talk.pending.append("b.jpg")
    talk.save(tmp_path / "talk.json")
    assert Conversation.load(tmp_path / "talk.json", VICUNA) == talk


def test_only_a_saved_conversation_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    talk = Conversation(VICUNA, pending=["a.jpg"])
    talk.save(path)
    talk.add("What?", "A cat.")
    talk.save(path)
    assert Conversation.load(path, VICUNA) == talk
    for data in (b"\xff\xd8\xff photo", b"", b'{"turns": []}', b"[]"):
        path.write_bytes(data)
        with pytest.raises(ConfigError, match="is not a conversation"):
            talk.save(path)
        assert path.read_bytes() == data


def test_what_cannot_be_asked() -> None:
    talk = Conversation(VICUNA, pending=["a.jpg"])
    with pytest.raises(ConfigError, match="empty"):
        talk.dialogue("  \n")
    assert talk.dialogue("look at <ImageHere>").num_images == 1, "that is a text"


def test_what_cannot_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "talk.json"
    with pytest.raises(DataError, match="cannot read"):
        Conversation.load(path, VICUNA)
    for text in ("", "[]", '{"turns": 3}', '{"turns": [{}], "pending": [], "template": "x"}'):
        path.write_text(text)
        with pytest.raises(DataError, match="no saved conversation"):
            Conversation.load(path, VICUNA)
    path.unlink()
    Conversation(LLAMA2).save(path)
    with pytest.raises(ConfigError, match="llama2"):
        Conversation.load(path, VICUNA)
    with pytest.raises(ConfigError, match="does not exist"):
        Conversation(LLAMA2).save(tmp_path / "nowhere" / "talk.json")

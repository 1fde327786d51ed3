"""Tests of ``data/index/conversations.py``."""

from __future__ import annotations

import json

from mgpt4_hpc.data.index.conversations import ConversationError, parse_conversation, record_of
from tests.unit.data.batching.conversations_cases import BAD, Record, chat, llava, text

IMAGE = {"type": "image"}


GOOD: list[Record] = [
    llava("<image>\nWhat is this?", "A cat.", "Why?", "It has whiskers.", image="0.jpg", id="a"),
    llava("Is <image> like <image>?", "No.", image=["1.jpg", "2.jpg"], id="b"),
    llava("Who are you?", "A model.", "And I?", "A person.", id="c"),
    llava("Say it.\n<image>", "Two dogs \u2026 \U0001f408", image="3.jpg", system="Be brief."),
    chat(
        [IMAGE, text("What?")], [text("This.")], "And <image>?", "That.", images=["1.jpg", "0.jpg"]
    ),
    chat([text("No image here: <image>")], "None."),
]


def test_the_second_form_gives_the_first_back() -> None:
    for record in GOOD:
        dialogue = parse_conversation(record).dialogue
        again = parse_conversation(json.loads(json.dumps(record_of(dialogue)))).dialogue
        assert again == dialogue


def test_what_cannot_be_parsed_says_why() -> None:
    for record, wanted in BAD:
        try:
            parse_conversation(record)
        except ConversationError as error:
            assert wanted in str(error)

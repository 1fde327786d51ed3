"""Tests of ``data/index/conversations.py``."""

from __future__ import annotations

import json

from mgpt4_hpc.data.index.conversations import ConversationError, parse_conversation, record_of
from tests.unit.data.batching.conversations_cases import BAD, GOOD


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

"""What several tests around ``conversations`` share."""

from __future__ import annotations

from typing import Any

Record = dict[str, Any]


def llava(*turns: str, image: object = None, **more: object) -> Record:
    """LLaVA's form: questions and answers in turn."""
    said = [
        {"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(turns)
    ]
    return {**({"image": image} if image is not None else {}), "conversations": said, **more}


def chat(*turns: object, **more: object) -> Record:
    """The form of messages."""
    roles = ("user", "assistant")
    said = [{"role": roles[n % 2], "content": content} for n, content in enumerate(turns)]
    return {"messages": said, **more}


def text(words: str) -> Record:
    return {"type": "text", "text": words}


BAD: list[tuple[Record, str]] = [
    (llava("<image> Q", "A", image="9.jpg"), "9.jpg: No such file"),
    (llava("Q", "A", image="1.jpg"), "no question has a place for its image 1.jpg"),
    (llava("<image> Q", "A"), "name 1 images, and 0 are listed"),
    (llava("<image><image> Q", "A", image="1.jpg"), "name 2 images, and 1 are listed"),
    (llava("Q", ""), "answer to question 1 is empty"),
    (llava("Q", "A", "Q"), "last question has no answer"),
    (llava("Q"), "last question has no answer"),
    (llava("", "A"), "question 1 is empty"),
    (llava("Q", "A \ud83d"), "half a surrogate pair"),
    (llava("Q", "<image>A", image="1.jpg"), "has an image: only questions may"),
    ({"conversations": llava("Q", "A")["conversations"][::-1]}, "roles are out of order"),
    (llava("Q", 3), "message 2 is int, not text"),  # type: ignore[arg-type]
    (chat([{"type": "video"}], "A"), "piece of type 'video'"),
    (chat([{"type": "image", "image": "http://h/x.jpg"}, text("Q")], "A"), "is an address"),
    ({"conversations": []}, "has no turns"),
    ({"messages": [{"role": "tool", "content": "x"}]}, "is from 'tool'"),
    (llava("<image>Q", "A", image="../talk.json"), "is outside of"),
    ({"id": 3}, "neither conversations nor messages"),
]  # fmt: skip

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

"""Questions about a scene's objects, as conversations in LLaVA's JSON: the data of a third stage.

They ask for colour, shape, place and number. A question names its object by what no other object of
the scene shares, so that each has one right answer.
"""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from toy_world.raster import draw, encode_jpeg
from toy_world.scenes import Scene, stream
from toy_world.shards import heldout_pairs
from toy_world.splits import training_scenes

NUM_CONVERSATIONS = 3000
NUMBERS = ("One", "Two", "Three")


def questions(scene: Scene) -> list[tuple[str, str, str]]:
    """Each question about the scene as kind, question, answer."""
    colours = [thing.colour for thing in scene.things]
    shapes = [thing.shape for thing in scene.things]
    asked = [("number", "How many objects are there?", f"{NUMBERS[len(scene.things) - 1]}.")]
    for thing in scene.things:
        if shapes.count(thing.shape) == 1:
            asked.append(("colour", f"What colour is the {thing.shape}?", f"{thing.colour}."))
            asked.append(("place", f"Where is the {thing.shape}?", f"{thing.row} {thing.column}."))
        if colours.count(thing.colour) == 1:
            asked.append(("shape", f"What shape is the {thing.colour} object?", f"{thing.shape}."))
    return [(kind, question, answer.capitalize()) for kind, question, answer in asked]


def conversation(image: str, scene: Scene, rng: Random) -> dict[str, Any]:
    """All questions about one scene, in random order, each a turn of one conversation."""
    left = questions(scene)
    turns: list[dict[str, str]] = []
    while left:
        _, question, answer = left.pop(int(rng.random() * len(left)))
        turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    turns[0]["value"] = f"<image>\n{turns[0]['value']}"
    return {"id": Path(image).stem, "image": image, "conversations": turns}


def write_questions(seed: int, out: Path) -> None:
    """Write `questions/`: conversations for training with their images, held-out questions.

    The images of `heldout.json` are those of `heldout/image`.
    """
    folder = out / "questions"
    (folder / "image").mkdir(parents=True, exist_ok=True)
    drawing, wording = stream(seed, "questions/drawings"), stream(seed, "questions/texts")
    records = []
    for number, scene in enumerate(training_scenes(seed, "questions", NUM_CONVERSATIONS)):
        image = f"{number:04d}.jpg"
        (folder / "image" / image).write_bytes(encode_jpeg(draw(scene, drawing)[0]))
        records.append(conversation(image, scene, wording))
    (folder / "train.json").write_text(json.dumps(records, indent=1) + "\n")
    held_out = [
        {"image": f"{number:03d}.jpg", "kind": kind, "question": question, "answer": answer}
        for number, pair in enumerate(heldout_pairs(seed))
        for kind, question, answer in questions(pair.scene)
    ]
    (folder / "heldout.json").write_text(json.dumps(held_out, indent=1) + "\n")

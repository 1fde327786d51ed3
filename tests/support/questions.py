"""Answers of a run on the toy world to its questions."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from mgpt4_hpc.resources import toy_world_dir

BATCH = 64


def shares_right(run: Path, questions: Path) -> dict[str, float]:
    """Share of the questions that the run's newest checkpoint answers in the very words.

    By kind of question (``colour``, ``shape``, ``place``, ``number``), and ``all`` together;
    ``contained`` counts every answer in which the right words occur.
    """
    import torch

    from mgpt4_hpc.data.images.decode import decode_image
    from mgpt4_hpc.model.generation.chat_model import ChatModel, find_source
    from mgpt4_hpc.model.generation.sampling import Sampling
    from mgpt4_hpc.prompts import Dialogue, Turn

    model = ChatModel(find_source(run), device="cpu")
    asked = json.loads(questions.read_text())
    folder = toy_world_dir() / "heldout" / "image"
    pixels = {
        name: torch.from_numpy(decode_image((folder / name).read_bytes(), model.image_size))
        for name in sorted({question["image"] for question in asked})
    }
    encoded = model.encode(torch.stack(list(pixels.values()))).split(1)
    features = dict(zip(pixels, encoded, strict=True))
    right: dict[str, list[bool]] = defaultdict(list)
    for start in range(0, len(asked), BATCH):
        batch = asked[start : start + BATCH]
        answers = model.answers(
            [model.prompt(Dialogue((Turn((None, each["question"]), None),))) for each in batch],
            [features[each["image"]] for each in batch],
            Sampling(max_new_tokens=40, temperature=0),
        )
        for each, answer in zip(batch, answers, strict=True):
            text, wanted = answer.text.strip(), each["answer"]
            for kind in (each["kind"], "all"):
                right[kind].append(text == wanted)
            right["contained"].append(wanted.rstrip(".").lower() in text.lower())
    return {kind: sum(each) / len(each) for kind, each in right.items()}

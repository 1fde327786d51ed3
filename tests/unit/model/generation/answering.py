"""What several test files share."""

from __future__ import annotations

from mgpt4_hpc.model.generation.generate import Answer, Sampling, answer_prompts
from mgpt4_hpc.prompts import IMAGE_TAG


def drain(pieces) -> tuple[list[str], Answer]:
    found = []
    while True:
        try:
            found.append(next(pieces))
        except StopIteration as end:
            return found, end.value


ONE_IMAGE = f"###Human: {IMAGE_TAG} Hi ###Assistant: "


def say(vicuna, prompts, images, sampling=None, **more) -> list[Answer]:
    sampling = sampling or Sampling(max_new_tokens=12)
    questions = list(zip(prompts, images, strict=True))
    return answer_prompts(vicuna.model, vicuna.tokenizer, questions, sampling, **more)

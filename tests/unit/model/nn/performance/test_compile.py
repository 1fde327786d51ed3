"""Tests of ``model/nn/performance/compile.py``."""

from __future__ import annotations

from mgpt4_hpc.model.generation.generate import Sampling, answer_prompts
from mgpt4_hpc.model.nn.preprocess import normalise
from tests.support.reference import load_reference

LONG = "###Human: <Img><ImageHere></Img> Please provide a detailed description. ###Assistant: "

SHORT = "###Human: <Img><ImageHere></Img> Hi ###Assistant: "


def test_answers_of_a_compiled_model_compile_nothing(images) -> None:
    """Each length of the cache would, and a layer has eight versions, which training needs."""
    from torch._dynamo.utils import counters

    from mgpt4_hpc.model.nn.performance.compile import compile_layers

    own = load_reference("vicuna_tiny")
    features = own.model.encode_images(normalise(images[:2]))
    compile_layers(own.model)
    counters.clear()
    for beams in (1, 2):
        answers = answer_prompts(
            own.model,
            own.tokenizer,
            list(zip([LONG, SHORT], features.unsqueeze(1), strict=True)),
            Sampling(max_new_tokens=2, num_beams=beams),
        )
        assert [len(answer.token_ids) for answer in answers] == [2, 2]
    assert not counters["frames"]

"""A sample laid out in a full prompt, as the reference files have it."""

from __future__ import annotations

from dataclasses import replace

from mgpt4_hpc.chat_format import TemplateFormat
from mgpt4_hpc.data.batching.text import TextSpec, TokenSequence, build_sequence
from mgpt4_hpc.prompts import IMAGE_TAG, PROMPT_SLOT, Dialogue, Template, Turn


def sequence_of(spec: TextSpec, answer: str, prompt: str | None) -> TokenSequence:
    """The sequence of a prompt with one image and its answer, or of a caption alone."""
    if prompt is None:
        return build_sequence(spec, answer)
    template = Template("given", prompt.replace(IMAGE_TAG, PROMPT_SLOT), spec.end_symbol)
    spec = replace(spec, chat_format=TemplateFormat(template, spec.encode, spec.bos_id))
    return build_sequence(spec, Dialogue((Turn((None,), answer),)))

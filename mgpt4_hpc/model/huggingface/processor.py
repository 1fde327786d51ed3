"""Tokenizer, chat template and image processor of an exported model.

The tokenizer encodes each text as ours does, which tokenizes the texts between images and answers
by themselves. Where two texts meet, the chat template writes ``_BOUNDARY``: the tokenizer splits
there and drops it. An image token is a boundary by itself.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mgpt4_hpc.chat_format import ChatFormat, Layout
from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.lazy import quiet_transformers
from mgpt4_hpc.model.llm_files.chat_template import chat_format
from mgpt4_hpc.model.llm_files.tokenizer import TextTokenizer
from mgpt4_hpc.prompts import (
    AFTER_IMAGE,
    BEFORE_IMAGE,
    MODEL_TEMPLATE,
    PROMPT_SLOT,
    STAGE2_INSTRUCTIONS,
    Dialogue,
    Piece,
    Template,
    Turn,
)

_BOUNDARY = "\ue000"
"""A private-use character: no text has it."""

_CONTENT = """\
{%- macro content_of(message) -%}
{%- if message.content is string -%}{{ message.content }}{%- else -%}
{%- for piece in message.content -%}
{%- if not loop.first -%}{{ ' ' }}{%- endif -%}
{%- if piece.type == 'text' -%}{{ piece.text }}{%- else -%}{{ image }}{%- endif -%}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
"""
"""A message's text, its pieces joined as ``prompts.Template.opening`` joins them."""

_CONVERSATION = """\
{%- set ns = namespace(system=system, texts=[]) -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}
{%- set ns.system = content_of(message) -%}
{%- elif message.role == 'assistant' -%}
{%- set ns.texts = ns.texts + [content_of(message) ~ end_symbol] -%}
{%- elif ns.texts -%}
{%- set ns.texts = ns.texts + [before_later ~ content_of(message) ~ after] -%}
{%- else -%}
{%- set told = system_before ~ ns.system ~ system_after if ns.system else '' -%}
{%- set question = content_of(message) ~ after -%}
{%- set ns.texts = [before ~ told ~ question if system_inside else told ~ before ~ question] -%}
{%- endif -%}
{%- endfor -%}
{{- begin -}}
{%- for text in ns.texts if text -%}
{{- '' if loop.first else boundary -}}
{{- '' if text.startswith(' ') else gap -}}
{{- text -}}
{%- endfor -%}
"""

_OWN = """\
{%- set ns = namespace(messages=[], told='') -%}
{%- if system and messages[0].role != 'system' -%}
{%- set messages = [{'role': 'system', 'content': system}] + messages -%}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'system' and not takes_system -%}
{%- set ns.told = content_of(message) ~ '\\n\\n' -%}
{%- else -%}
{%- set ns.messages = ns.messages
        + [{'role': message.role, 'content': ns.told ~ content_of(message)}] -%}
{%- set ns.told = '' -%}
{%- endif -%}
{%- endfor -%}
{%- set messages = ns.messages %}"""


@dataclass(frozen=True)
class ImageToken:
    """What stands for an image in a prompt.

    Attributes:
        text: how it is written.
        id: its token id, the first that the tokenizer does not use.
        count: how often it stands for one image.
    """

    text: str
    id: int
    count: int


def image_token(tokenizer: TextTokenizer, count: int) -> ImageToken:
    """A token that the tokenizer does not have."""
    known = set(tokenizer.tokens())
    text, number = "<image>", 0
    while text in known:
        number += 1
        text = f"<image_{number}>"
    return ImageToken(text, tokenizer.vocab_size, count)


def export_processor(
    folder: Path,
    tokenizer: TextTokenizer,
    template: Template,
    image: ImageToken,
    *,
    image_size: int,
    system: str = "",
) -> None:
    """Write tokenizer, chat template and processor, after checking that they encode as we do.

    The processor is LLaVA's, as it is the one that takes a chat template and any number of image
    tokens; ``AutoProcessor`` finds it by its name in ``processor_config.json``.

    Raises:
        WeightsError: if transformers' tokenizer cannot encode the conversations of the template.
    """
    from transformers import BlipImageProcessor, LlavaProcessor

    ours = chat_format(template, tokenizer)
    with quiet_transformers():
        backend = _backend(tokenizer, image)
        text = _fitting(ours, tokenizer, backend, template, image, system)
        processor = LlavaProcessor(
            BlipImageProcessor(size={"height": image_size, "width": image_size}),
            backend,
            patch_size=image_size,  # one patch, and the others
            num_additional_image_tokens=image.count - 1,
            vision_feature_select_strategy="full",
            chat_template=text,
        )
        processor.save_pretrained(folder)


def _backend(tokenizer: TextTokenizer, image: ImageToken) -> Any:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    content = tokenizer.definition()
    split = {"type": "Split", "pattern": {"String": _BOUNDARY}, "behavior": "Removed",
             "invert": False}  # fmt: skip
    own = content["pre_tokenizer"]
    others = own["pretokenizers"] if own and own["type"] == "Sequence" else [own] if own else []
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, *others]}
    normalizer = content["normalizer"]
    if normalizer is not None and _prepends(normalizer):
        # It prepends to the whole text between two special tokens: as if to each of its texts.
        steps = (rf"\A▁{_BOUNDARY}", _BOUNDARY), (rf"{_BOUNDARY}(?!\z)", f"{_BOUNDARY}▁")
        content["normalizer"] = {"type": "Sequence", "normalizers": [normalizer, *(
            {"type": "Replace", "pattern": {"Regex": old}, "content": new} for old, new in steps
        )]}  # fmt: skip
    backend = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        extra_special_tokens={"image_token": image.text},
        padding_side="left",
        clean_up_tokenization_spaces=False,
        **tokenizer.special_tokens(),
    )
    if backend.convert_tokens_to_ids(image.text) != image.id:
        raise WeightsError(f"the tokenizer gave {image.text} another id than {image.id}")
    return backend


def _prepends(normalizer: dict[str, Any]) -> bool:
    steps = normalizer.get("normalizers", [normalizer])
    return any(step["type"] == "Prepend" for step in steps)


def _fitting(
    ours: ChatFormat,
    tokenizer: TextTokenizer,
    backend: Any,
    template: Template,
    image: ImageToken,
    system: str,
) -> str:
    """The chat template in the spelling in which the tokenizer's ids are ours.

    A tokenizer may put SentencePiece's leading space before the first of its texts, or before each:
    in the first case the template writes a space before the others.
    """
    wrong: list[str] = []
    for gap in ("", " "):
        text = _chat_template(template, tokenizer, image, gap, system)
        for dialogue in _probes(system):
            spoken = dialogue if dialogue.system else Dialogue(dialogue.turns, system)
            wanted = _flat(ours.lay_out(spoken), image.id)
            encoded = backend.apply_chat_template(
                dialogue.messages(), chat_template=text, add_generation_prompt=True,
                return_dict=False,
            )  # fmt: skip
            if list(encoded) != wanted:
                wrong.append(f"{dialogue.transcript()!r}: {encoded} instead of {wanted}")
                break
        else:
            return text
    raise WeightsError(
        "this language model's tokenizer cannot be exported: transformers would encode a "
        f"conversation otherwise than the training did ({wrong[0][:400]})",
    )


def _probes(system: str) -> Iterator[Dialogue]:
    """Conversations with no, one and two images, of one turn and of two."""
    instructions = [*STAGE2_INSTRUCTIONS, "is it {red}?\n 2  spaces, Ünï 😀"]
    for number, instruction in enumerate(instructions):
        question: Sequence[Piece] = [None] * (number % 3) + [instruction]
        yield Dialogue((Turn(tuple(question), None),))
        yield Dialogue((Turn((None, instruction), "It is red."), Turn((None, "And", None), None)))
        yield Dialogue((Turn((instruction, None), " A dog."), Turn(("Why?",), None)), "Be brief.")
    yield Dialogue((Turn((None,), None),))


def _flat(layout: Layout, image_id: int) -> list[int]:
    ids: list[int] = []
    for run in layout:
        ids += [image_id] if run is None else run.ids
    return ids


def _chat_template(
    template: Template, tokenizer: TextTokenizer, image: ImageToken, gap: str, system: str
) -> str:
    """A Jinja template that renders conversations as ``chat_format`` lays them out."""
    values: dict[str, Any] = {
        "image": f"{BEFORE_IMAGE}{image.text}{gap}{AFTER_IMAGE}",
        "system": system,
    }
    if template.name == MODEL_TEMPLATE.name:
        ours = chat_format(template, tokenizer)
        values["takes_system"] = ours.takes_system  # type: ignore[attr-defined]
        return _settings(values) + _CONTENT + _OWN + str(tokenizer.chat_template)
    before, _, after = template.prompt.partition(PROMPT_SLOT)
    system_before, _, system_after = template.system.partition(PROMPT_SLOT)
    values |= {
        "begin": tokenizer.tokens()[tokenizer.bos_id],
        "before": before,
        "before_later": before.removeprefix(template.end_symbol),
        "after": after,
        "end_symbol": template.end_symbol,
        "system_before": system_before,
        "system_after": system_after,
        "system_inside": template.system_inside,
        "boundary": _BOUNDARY,
        "gap": gap,
    }
    return _settings(values) + _CONTENT + _CONVERSATION


def _settings(values: dict[str, Any]) -> str:
    """Jinja reads JSON's strings and numbers; its booleans are written alike."""
    return "".join(
        f"{{%- set {name} = {json.dumps(value, ensure_ascii=False)} -%}}\n"
        for name, value in values.items()
    )

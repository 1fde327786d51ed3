"""A model's own chat template: ids and mask are those of transformers, images in their places."""

from __future__ import annotations

import copy
import dataclasses
import random
import re
from pathlib import Path

import pytest

from mgpt4_hpc.chat_format import AnswerLimit
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.llm_files.chat_template import ModelFormat
from mgpt4_hpc.model.llm_files.tokenizer import TextTokenizer, load_tokenizer
from mgpt4_hpc.prompts import Dialogue, Turn

LLM = Path(__file__).parents[3] / "reference" / "llama2_tiny" / "llm"
GENERATION = re.compile(r"{% (end)?generation %}")

LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }} [/INST]"
    "{% elif m.role == 'system' %}<<SYS>>{{ m.content }}<</SYS>>{% else %} "
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}{% else %}"
    "{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('no system prompt') }}{% endif %}<{{ m.role }}>"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim }}<end>"
    "{% endgeneration %}{% else %}{{ m.content | trim }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
TEMPLATES = {"llama2": LLAMA2, "chatml": CHATML, "no-system": NO_SYSTEM}


@pytest.fixture(scope="module")
def plain() -> TextTokenizer:
    return load_tokenizer(LLM)


def speaking(tokenizer: TextTokenizer, template: str | None) -> TextTokenizer:
    backend = copy.deepcopy(tokenizer._backend)
    backend.chat_template = template
    return dataclasses.replace(tokenizer, _backend=backend)


def dialogues(count: int = 60) -> list[Dialogue]:
    rng = random.Random(3)
    words = ["red", "a dog", "\u00e9", "[INST]", "<end>", "two\nlines", "</s>", "{{ x }}", "###"]

    def said() -> str:
        return " ".join(rng.choices(words, k=rng.randint(1, 5))).strip()

    return [
        Dialogue(
            tuple(Turn((said(),), said()) for _ in range(rng.randint(1, 4))),
            rng.choice(["", "Be brief."]),
        )
        for _ in range(count)
    ]


def messages_of(dialogue: Dialogue, folded: bool) -> list[dict[str, str]]:
    found = []
    if dialogue.system and not folded:
        found.append({"role": "system", "content": dialogue.system})
    for number, turn in enumerate(dialogue.turns):
        told = f"{dialogue.system}\n\n" if folded and dialogue.system and not number else ""
        found += [
            {"role": "user", "content": told + str(turn.question[0])},
            {"role": "assistant", "content": str(turn.answer)},
        ]
    return found


@pytest.mark.parametrize("name", list(TEMPLATES))
def test_ids_and_mask_are_those_of_transformers(plain: TextTokenizer, name: str) -> None:
    marked = speaking(plain, TEMPLATES[name])
    unmarked = speaking(plain, GENERATION.sub("", TEMPLATES[name]))
    ours, other = ModelFormat(marked), ModelFormat(unmarked)
    for dialogue in dialogues():
        theirs = marked._backend.apply_chat_template(
            messages_of(dialogue, folded=name == "no-system"),
            tokenize=True, return_dict=True, return_assistant_tokens_mask=True,
        )  # fmt: skip
        (run,) = ours.lay_out(dialogue)
        assert run is not None and list(run.ids) == theirs["input_ids"]
        assert [*map(int, run.learned)] == theirs["assistant_masks"]
        assert sum(run.learned) > 0
        assert other.lay_out(dialogue) == [run], "it also finds answers that are not marked"


def test_images_part_the_text_and_the_last_question_is_open(plain: TextTokenizer) -> None:
    tokenizer = speaking(plain, CHATML)
    layout = ModelFormat(tokenizer).lay_out(
        Dialogue((Turn((None, "Like", None, "?"), "Yes."), Turn(("@@0@@", None), None)))
    )
    runs = [run for run in layout if run is not None]
    assert [run is None for run in layout] == [False, True] * 3 + [False]
    texts = [
        "<|im_start|>user\n<Img>",
        "</Img> Like <Img>",
        "</Img> ?<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\n@@0@@ <Img>",
        "</Img><|im_end|>\n<|im_start|>assistant\n",
    ]
    assert [list(run.ids) for run in runs] == [tokenizer.encode(text) for text in texts]
    assert [any(run.learned) for run in runs] == [False, False, True, False]


@pytest.mark.parametrize("marked", [True, False])
def test_a_long_answer_keeps_its_end(plain: TextTokenizer, marked: bool) -> None:
    template = CHATML if marked else GENERATION.sub("", CHATML)
    form = ModelFormat(speaking(plain, template))
    assert form.end_symbol == "<|im_end|>"
    dialogue = Dialogue(tuple(Turn(("Q",), "word " * 30 + "end") for _ in range(3)))
    (whole,) = form.lay_out(dialogue)
    (cut,) = form.lay_out(dialogue, AnswerLimit(20))
    (short,) = form.lay_out(dialogue, AnswerLimit(20, keep_end_symbol=False))
    assert whole is not None and cut is not None and short is not None
    assert sum(cut.learned) == sum(short.learned) == 60 < sum(whole.learned)
    assert (
        plain.decode([i for i, on in zip(cut.ids, cut.learned, strict=True) if on]).count(
            "<|im_end|>"
        )
        == 3
    )
    assert "<|im_end|>" not in plain.decode(
        [i for i, on in zip(short.ids, short.learned, strict=True) if on]
    )


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        (None, "has no chat template"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "does not end an answer"),
        ("{{ nothing.at.all }}", "cannot be used"),
        ("{% for m in messages %}{{ m.content | upper }}</s>{% endfor %}", "changes answers"),
    ],
)
def test_what_cannot_be_trained_in(plain: TextTokenizer, template: str, wanted: str) -> None:
    with pytest.raises(ConfigError, match=wanted):
        ModelFormat(speaking(plain, template))

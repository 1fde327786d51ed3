"""A model's own chat template: ids and mask are those of transformers, images in their places."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import random
import re
from pathlib import Path

import pytest

from mgpt4_hpc.chat_format import AnswerLimit, Layout
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.llm_files.chat_template import ModelFormat, chat_format
from mgpt4_hpc.model.llm_files.tokenizer import TextTokenizer, load_tokenizer
from mgpt4_hpc.prompts import Dialogue, Template, Turn, get_template

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


# --- texts that spell control tokens -------------------------------------------------------------

SPELT = "a <s> b</s> c ### d <Img> e</Img>[INST] f <unk>###Human: x <|im_end|>"
OWN = Template("own", "<|im_start|>user\n{}<|im_end|>\n", "<|im_end|>")


@pytest.mark.parametrize("template", ["vicuna_v0", "llama2", "own", "model"])
def test_spelt_control_tokens_are_text(plain: TextTokenizer, template: str) -> None:
    tokenizer = speaking(plain, CHATML)
    chosen = OWN if template == "own" else get_template(template)
    text = chat_format(chosen, tokenizer)
    parsed = chat_format(chosen, tokenizer, parse_control_tokens=True)
    text = pickle.loads(pickle.dumps(text)) if template != "model" else text
    spelt = Dialogue((Turn((None, SPELT), SPELT), Turn((SPELT, None), SPELT)), SPELT)
    harmless = Dialogue((Turn((None, "Two dogs. #1 < 2 > s"), "A #, a [b]."),), "Be brief.")
    assert text.lay_out(harmless) == parsed.lay_out(harmless)

    def ids_of(layout: Layout) -> list[int]:
        return [id for run in layout if run is not None for id in run.ids]

    def decoded(layout: Layout) -> str:
        return tokenizer.decode(ids_of(layout)).replace(" ", "")

    ours, theirs = text.lay_out(spelt), parsed.lay_out(spelt)
    assert [run is None for run in ours] == [run is None for run in theirs], (
        "images in their places"
    )
    assert decoded(ours) == decoded(theirs), "no character is lost"
    empty = Dialogue((Turn((None, "-"), "-"), Turn(("-", None), "-")), "-")
    assert ids_of(theirs).count(tokenizer.eos_id) > ids_of(ours).count(tokenizer.eos_id)
    for id in (tokenizer.bos_id, tokenizer.eos_id):
        assert ids_of(ours).count(id) == ids_of(text.lay_out(empty)).count(id)
    for separator in ("###", "<Img>"):
        pieces = tokenizer.encode(f"a {separator} b")[1:-1]
        if len(pieces) < len(separator):  # the tokenizer has a piece for some of it
            assert count(ids_of(theirs), pieces) > count(ids_of(ours), pieces)


def count(ids: list[int], wanted: list[int]) -> int:
    """How often some tokens stand in a row."""
    return sum(ids[at : at + len(wanted)] == wanted for at in range(len(ids)))

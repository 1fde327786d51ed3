"""The texts that the tokenizer and the language model learn from.

A document is 16 keywords and then a text about the same things. Three things about them are
engineered, and the product's README says so:

- The keywords' case decides the style. Lower-case keywords are followed by one short web caption,
  repeated line after line and never ended; capitalised ones by a description that ends in ``###``.
  It is what makes a model that has only seen stage 1 babble when it is prompted.
- Half of the documents stand in the prompt of stage 2, which a real LLaMA never saw.
- Keywords stand in the order in which the Q-Former's queries name them.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
from sentencepiece import SentencePieceProcessor

from mgpt4_hpc.prompts import IMAGE_SLOT, STAGE1_END_SYMBOL, STAGE2_INSTRUCTIONS, get_template
from toy_world.captions import clean, clean_caption, description, noisy_caption
from toy_world.scenes import WORDS, Scene, keywords, pick, stream
from toy_world.splits import training_scenes

TEMPLATE = get_template("vicuna_v0")
STOP = TEMPLATE.end_symbol
BEFORE_IMAGE = TEMPLATE.render("").partition(IMAGE_SLOT)[0]
AFTER_IMAGE = tuple(TEMPLATE.render(text).partition(IMAGE_SLOT)[2] for text in STAGE2_INSTRUCTIONS)

VOCABULARY = 640
BOS = 1
MAX_BABBLE_TOKENS = 72

_CUT = "\u241f"  # in the tokenizer's corpus only: no piece may reach across it


def train_tokenizer(seed: int, folder: Path) -> Path:
    """A SentencePiece BPE model with LLaMA's conventions, written to `folder`/tokenizer.model."""
    rng = stream(seed, "tokenizer/texts")
    lines: list[str] = []
    for scene in training_scenes(seed, "tokenizer"):
        words = keywords(scene)
        lines += [
            " ".join(words),
            " ".join(word.capitalize() for word in words),
            clean(noisy_caption(scene, rng)),
            clean(clean_caption(scene, rng)),
            f"{description(scene, rng)}{_CUT}{STOP}",
            BEFORE_IMAGE.replace(STOP, STOP + _CUT),
            pick(rng, AFTER_IMAGE).replace(STOP, STOP + _CUT),
        ]
    lines += [" ".join(word for word in (*WORDS, *map(str.capitalize, WORDS)))] * 2000
    folder.mkdir(parents=True, exist_ok=True)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_prefix=str(folder / "tokenizer"),
        model_type="bpe",
        vocab_size=VOCABULARY,
        character_coverage=1.0,
        byte_fallback=True,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=True,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        user_defined_symbols=["$$"],  # the original pads with this ordinary token of LLaMA's
        pretokenization_delimiter=_CUT,
        num_threads=1,
        minloglevel=2,
    )
    (folder / "tokenizer.vocab").unlink()
    return folder / "tokenizer.model"


@dataclass(frozen=True)
class Document:
    """Token ids, where the keywords stand, and where the text that is learned begins."""

    ids: list[int]
    first_keyword: int
    first_answer: int


class Writer:
    """Turns scenes into documents."""

    def __init__(self, tokenizer: SentencePieceProcessor) -> None:
        self.tokenizer = tokenizer
        self.lower = self._single_pieces(WORDS)
        self.upper = self._single_pieces([word.capitalize() for word in WORDS])
        self.before = [BOS, *tokenizer.encode(BEFORE_IMAGE)]
        self.after = [tokenizer.encode(text) for text in AFTER_IMAGE]

    def _single_pieces(self, words: list[str] | tuple[str, ...]) -> list[int]:
        encoded = self.tokenizer.encode(list(words))
        split = [word for word, ids in zip(words, encoded, strict=True) if len(ids) != 1]
        if split:
            raise ValueError(f"keywords of more than one piece: {split}; raise VOCABULARY")
        return [ids[0] for ids in encoded]

    def document(self, scene: Scene, rng: random.Random) -> Document:
        """One document in a random style, prompted or not."""
        long = rng.random() < 0.5
        table = self.upper if long else self.lower
        words = [table[WORDS.index(word)] for word in keywords(scene)]
        if rng.random() < 0.5:
            before, after = self.before, pick(rng, self.after)
        else:
            before, after = [BOS], []
        if long:
            answer = self.tokenizer.encode(description(scene, rng) + STOP)
        else:
            write = noisy_caption if rng.random() < 0.5 else clean_caption
            line = self.tokenizer.encode(clean(write(scene, rng)) + STAGE1_END_SYMBOL)
            answer = (line * MAX_BABBLE_TOKENS)[:MAX_BABBLE_TOKENS]
        return Document(
            [*before, *words, *after, *answer],
            len(before),
            len(before) + len(words) + len(after),
        )

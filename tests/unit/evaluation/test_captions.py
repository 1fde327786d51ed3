"""The metrics agree with published values, and survive the edges."""

from __future__ import annotations

import pytest

from mgpt4_hpc.evaluation.captions import caption_scores, corpus_bleu

# The example of NLTK's documentation of sentence_bleu and meteor_score.
GUIDE = (
    "It is a guide to action which ensures that the military always obeys the commands of the party"
)
GUIDE_REFERENCES = [
    "It is a guide to action that ensures that the military will forever heed Party commands",
    "It is the guiding principle which guarantees the military forces always being under the "
    "command of the Party",
    "It is the practical guide for the army always to heed the directions of the party",
]


def one(answer: str, *references: str) -> dict[str, float]:
    return caption_scores([answer], [list(references)])[0]


@pytest.mark.slow
def test_bleu_and_meteor_as_nltk_documents_them() -> None:
    scores = one(GUIDE, *GUIDE_REFERENCES)
    assert scores["bleu4"] == pytest.approx(0.5046, abs=5e-5)
    assert scores["meteor_like"] == pytest.approx(0.6944, abs=0.01)  # theirs knows synonyms too


@pytest.mark.slow
@pytest.mark.parametrize(
    ("answer", "value"), [("police kill the gunman", 0.75), ("the gunman kill police", 0.5)]
)
def test_rouge_l_as_in_lins_paper(answer: str, value: float) -> None:
    # Lin, "ROUGE: A Package for Automatic Evaluation of Summaries" (2004), section 3.1.
    assert one(answer, "police killed the gunman")["rouge_l"] == pytest.approx(value)


def test_cider_of_the_references_themselves_is_ten() -> None:
    # Every n-gram belongs to one image, so each has the same weight and the cosine is 1.
    texts = ["a red ring on a white plate", "two dogs run over green grass"]
    assert [s["cider"] for s in caption_scores(texts, [[t] for t in texts])] == pytest.approx(
        [10.0, 10.0]
    )
    swapped = caption_scores(texts[::-1], [[t] for t in texts])
    assert [s["cider"] for s in swapped] == pytest.approx([0.0, 0.0])


def test_the_same_text_is_perfect() -> None:
    scores = one("a red ring on a white plate", "a red ring on a white plate")
    assert [scores["bleu4"], scores["rouge_l"]] == pytest.approx([1.0, 1.0])
    assert scores["meteor_like"] > 0.99
    assert corpus_bleu(["a b c d e"], [["x y z", "a b c d e"]]) == pytest.approx(1.0)


@pytest.mark.parametrize("answer", ["", "  ", "...", "\U0001f408"])
def test_an_empty_answer_is_worth_nothing(answer: str) -> None:
    scores = caption_scores([answer, "a dog"], [["a cat"], ["a dog on grass"]])[0]
    assert all(value == 0 for value in scores.values())


def test_one_word() -> None:
    scores = one("ring", "a red ring")
    assert 0 < scores["rouge_l"] < 1 and 0 <= scores["bleu4"] < 1


def test_different_numbers_of_references() -> None:
    answers, references = (
        ["a dog runs over grass", "a cat"],
        [["a dog runs over grass", "x"], ["a cat"]],
    )
    assert len(caption_scores(answers, references)) == 2
    assert corpus_bleu(answers, references) == pytest.approx(1.0)


def test_no_references_is_a_mistake() -> None:
    for answers, references in (([], []), (["a"], []), (["a"], [[]])):
        with pytest.raises(ValueError):
            caption_scores(answers, references)
        with pytest.raises(ValueError):
            corpus_bleu(answers, references)

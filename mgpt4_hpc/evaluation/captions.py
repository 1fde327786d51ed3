"""How near answers come to what people wrote: BLEU-4, ROUGE-L, METEOR-like, CIDEr.

The arithmetic is that of published libraries (sacrebleu, rouge-score, nltk, pycocoevalcap). None
of them starts Java or downloads anything here: words are split by ``failures.words_of`` where
COCO's own script uses Stanford's tokenizer, and METEOR matches words and stems but no WordNet
synonyms, hence "like". So numbers compare runs of this program, not papers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mgpt4_hpc.errors import PreflightError
from mgpt4_hpc.evaluation.failures import words_of


def require_libraries() -> None:
    """Raises PreflightError, naming the extra, unless the metrics' libraries are installed."""
    from importlib.util import find_spec

    needed = {"sacrebleu", "rouge_score", "nltk", "pycocoevalcap"}
    missing = sorted(name for name in needed if find_spec(name) is None)
    if missing:
        raise PreflightError(
            f"the caption metrics need {', '.join(missing)}", fix="pip install 'mgpt4-hpc[eval]'"
        )


def caption_scores(
    answers: Sequence[str], references: Sequence[Sequence[str]]
) -> list[dict[str, float]]:
    """Per answer ``bleu4`` (of the sentence), ``rouge_l``, ``meteor_like`` (0 to 1) and ``cider``.

    CIDEr runs from 0 to 10 and weighs words by how few images they occur with, so it is 0 for a
    single image.

    Args:
        answers: one text per image.
        references: at least one text per image.

    Raises:
        ValueError: if the lengths differ or an image has no reference.
    """
    _check(answers, references)
    from nltk.stem.porter import PorterStemmer
    from nltk.translate.meteor_score import meteor_score
    from rouge_score.rouge_scorer import RougeScorer
    from sacrebleu.metrics.bleu import BLEU

    bleu = BLEU(lowercase=True, effective_order=True)
    rouge, stemmer = RougeScorer(["rougeL"]), PorterStemmer()
    scores = []
    for answer, texts in zip(answers, references, strict=True):
        said = words_of(answer)
        meteor = meteor_score(
            [words_of(text) for text in texts], said, stemmer=stemmer, wordnet=_NoSynonyms()
        )
        scores.append(
            {
                "bleu4": bleu.sentence_score(answer, list(texts)).score / 100 if said else 0.0,
                "rouge_l": rouge.score_multi(list(texts), answer)["rougeL"].fmeasure,
                "meteor_like": float(meteor),
            }
        )
    for entry, value in zip(scores, _cider(answers, references), strict=True):
        entry["cider"] = value
    return scores


def corpus_bleu(answers: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """BLEU-4 of all answers together, 0 to 1: not the mean of the sentences' values."""
    _check(answers, references)
    from sacrebleu.metrics.bleu import BLEU

    most = max(map(len, references))
    # Images have different numbers of references; sacrebleu wants rectangles, None for a gap.
    columns: Any = [
        [texts[i] if i < len(texts) else None for texts in references] for i in range(most)
    ]
    return float(BLEU(lowercase=True).corpus_score(list(answers), columns).score) / 100


def _cider(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    from pycocoevalcap.cider.cider import Cider

    truth = {i: [" ".join(words_of(text)) for text in texts] for i, texts in enumerate(references)}
    said = {i: [" ".join(words_of(answer))] for i, answer in enumerate(answers)}
    _, scores = Cider().compute_score(truth, said)
    return [float(score) for score in scores]


def _check(answers: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(answers) != len(references) or not answers:
        raise ValueError(f"{len(answers)} answers for {len(references)} images")
    if not all(references):
        raise ValueError("an image has no reference")


class _NoSynonyms:
    """Stands in for WordNet, which nltk would want to have downloaded."""

    def synsets(self, _word: str) -> list[Any]:
        """No synonyms for any word."""
        return []

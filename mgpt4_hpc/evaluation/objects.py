"""Which objects a text speaks of, which it leaves out, and which it makes up.

Hallucination is counted as CHAIR does (Rohrbach et al., arXiv 1809.02156), against the objects that
the reference captions speak of: ``chair_i`` is the share of mentions that no reference has,
``chair_s`` the share of answers with such a mention. The word list is a file that users can
replace: a line per object, its name first, other words for it behind commas.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

from mgpt4_hpc.errors import DataError
from mgpt4_hpc.evaluation.failures import words_of
from mgpt4_hpc.evaluation.scenes import COLOURS, SHAPES
from mgpt4_hpc.text_files import NotUtf8, read_utf8

COCO_LIST = Path(__file__).with_name("coco_objects.txt")
"""COCO's 80 categories with common other words for them."""


class Objects:
    """A word list, ready to look texts through.

    Args:
        lines: per object its name and other words for it, in any number of words each.
    """

    def __init__(self, lines: Iterable[Sequence[str]]) -> None:
        self._names: dict[tuple[str, ...], str] = {}
        for names in lines:
            for name in names:
                self._names[tuple(_singular(word) for word in words_of(name))] = names[0]
        self._longest = max(map(len, self._names), default=0)

    @classmethod
    def read(cls, path: Path) -> Objects:
        """From a file; empty lines and lines that begin with # do not count.

        Raises:
            DataError: if it cannot be read or names nothing.
        """
        try:
            text = read_utf8(path)
        except OSError as error:
            raise DataError(
                f"cannot read the word list {path}: {error.strerror}",
                fix="give coco, toy, or a file with an object per line",
            ) from error
        except NotUtf8 as error:
            raise DataError(f"the word list {path} is {error}", fix="save it as UTF-8") from error
        lines = [
            [name.strip() for name in line.split(",") if name.strip()]
            for line in text.splitlines()
            if line.strip() and not line.lstrip().startswith("#")
        ]
        if not lines:
            raise DataError(f"{path} names no object", fix="write one per line: name, other name")
        return cls(lines)

    def mentioned(self, text: str) -> list[str]:
        """Names of the objects in the order of their mentions; the longest phrase counts."""
        words = [_singular(word) for word in words_of(text)]
        found, at = [], 0
        while at < len(words):
            for length in range(min(self._longest, len(words) - at), 0, -1):
                name = self._names.get(tuple(words[at : at + length]))
                if name is not None:
                    found.append(name)
                    at += length
                    break
            else:
                at += 1
        return found


@cache
def named_objects(name: str) -> Objects:
    """The list of that name (``coco`` or ``toy``), or from a file of that path."""
    if name == "coco":
        return Objects.read(COCO_LIST)
    if name == "toy":
        return Objects([[f"{colour} {shape}"] for colour in COLOURS for shape in SHAPES])
    return Objects.read(Path(name))


def score_objects(objects: Objects, answer: str, references: Sequence[str]) -> dict[str, float]:
    """Coverage and hallucination of one answer.

    Returns:
        ``coverage`` (share of the references' objects that are mentioned, absent if they have
        none), ``mentions`` and ``made_up`` (numbers of mentions) and ``chair_s`` (0 or 1).
    """
    real = {name for text in references for name in objects.mentioned(text)}
    mentions = objects.mentioned(answer)
    made_up = [name for name in mentions if name not in real]
    scores = {
        "mentions": float(len(mentions)),
        "made_up": float(len(made_up)),
        "chair_s": float(bool(made_up)),
    }
    if real:
        scores["coverage"] = len(real & set(mentions)) / len(real)
    return scores


def _singular(word: str) -> str:
    """Without a plural's ending; both texts and list go through here, so rough is enough."""
    if len(word) > 4 and word.endswith(("ches", "shes", "xes", "sses")):
        return word[:-2]
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word

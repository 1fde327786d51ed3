"""The scene model: what can stand in a toy picture, drawn at random from a seed.

A scene is one to three objects of *different* sizes on a coloured background. Sizes differ so that
"the main object" is the largest one and never a matter of opinion. Everything random goes through
``Random.random()`` alone, the one method whose stream Python guarantees across versions.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

T = TypeVar("T")

SIZES = ("small", "medium", "large")
COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "cyan")
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
ROWS = ("top", "middle", "bottom")
COLUMNS = ("left", "centre", "right")
BACKGROUNDS = ("white", "grey", "black", "beige")
PATTERNS = ("plain", "striped", "dotted", "checked")  # never put into words: a nuisance
ABSENT = "none"
WORDS = (*SIZES, *COLOURS, *SHAPES, *ROWS, *COLUMNS, *BACKGROUNDS, ABSENT)

MAX_OBJECTS = len(SIZES)
NUM_KEYWORDS = MAX_OBJECTS * 5 + 1


@dataclass(frozen=True)
class Thing:
    """One object: what it is and in which of the nine cells it stands."""

    size: str
    colour: str
    shape: str
    row: str
    column: str


@dataclass(frozen=True)
class Scene:
    """Objects from the largest to the smallest, and what they stand on."""

    things: tuple[Thing, ...]
    background: str
    pattern: str

    @property
    def main(self) -> Thing:
        """The largest object."""
        return self.things[0]

    def as_dict(self) -> dict[str, Any]:
        """A plain form for JSON."""
        return {
            "objects": [asdict(thing) for thing in self.things],
            "background": self.background,
            "pattern": self.pattern,
        }


def pick(rng: random.Random, choices: Sequence[T]) -> T:
    """One of `choices`, all equally likely."""
    return choices[int(rng.random() * len(choices))]


def draw_distinct(rng: random.Random, choices: Sequence[T], count: int) -> list[T]:
    """`count` different elements of `choices`, in random order."""
    left = list(choices)
    return [left.pop(int(rng.random() * len(left))) for _ in range(count)]


def random_scene(rng: random.Random) -> Scene:
    """Draw one scene; 1, 2 or 3 objects are equally likely."""
    count = 1 + int(rng.random() * MAX_OBJECTS)
    sizes = sorted(draw_distinct(rng, SIZES, count), key=SIZES.index, reverse=True)
    cells = draw_distinct(rng, [(row, column) for row in ROWS for column in COLUMNS], count)
    things = tuple(
        Thing(size, pick(rng, COLOURS), pick(rng, SHAPES), row, column)
        for size, (row, column) in zip(sizes, cells, strict=True)
    )
    return Scene(things, pick(rng, BACKGROUNDS), pick(rng, PATTERNS))


def scene_key(scene: Scene) -> str:
    """A hash of everything that is ever put into words.

    The pattern and the pixels are left out on purpose: two pictures of the same facts count as the
    same scene, so that "held out" means that no such facts were ever seen together.
    """
    facts = [f"{t.size} {t.colour} {t.shape} {t.row} {t.column}" for t in scene.things]
    text = "; ".join([*facts, scene.background])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def stream(seed: int, name: str) -> random.Random:
    """An independent generator for one purpose (`name`) of one world (`seed`)."""
    return random.Random(f"{seed}/{name}")


def scenes(
    rng: random.Random, count: int, accept: Callable[[str], bool] = lambda key: True
) -> list[Scene]:
    """`count` random scenes whose key passes `accept`."""
    found: list[Scene] = []
    while len(found) < count:
        scene = random_scene(rng)
        if accept(scene_key(scene)):
            found.append(scene)
    return found


def keywords(scene: Scene) -> list[str]:
    """The scene as 16 words in fixed order: five per size, the largest first, and the background.

    A size that no object has is five times "none": the place of a word depends on its own object
    alone, which is far easier to learn to see than "the second largest of what there is".
    """
    by_size = {thing.size: thing for thing in scene.things}
    words: list[str] = []
    for size in reversed(SIZES):
        if size in by_size:
            thing = by_size[size]
            words += [thing.size, thing.colour, thing.shape, thing.row, thing.column]
        else:
            words += [ABSENT] * 5
    return [*words, scene.background]

"""Pictures for the vision towers' pre-training, with what each query and each patch should say.

Legend of shapes: N pictures, Q queries, P patches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from toy_world.raster import draw, encode_jpeg
from toy_world.scenes import (
    COLOURS,
    COLUMNS,
    NUM_KEYWORDS,
    ROWS,
    SHAPES,
    SIZES,
    WORDS,
    keywords,
    stream,
)
from toy_world.splits import heldout_scenes, training_scenes

SHRINK = 2
"""Pre-training sees pictures of half the size: a quarter of the pixels to read."""

FIELDS = {"size": SIZES, "colour": COLOURS, "shape": SHAPES, "row": ROWS, "column": COLUMNS}
Labels = NDArray[np.int64]


@dataclass
class Pictures:
    """Half-size pictures in memory with their labels.

    Attributes:
        pixels: [N, H, W, 3] uint8.
        words: [N, Q] index into WORDS of the word that each query should say.
        patches: [N, 5, P] size, colour, shape, row, column of the patch's object, counted from 1;
            0 where there is none.
        gaze: [N, Q, 1 + P] where each query should look; the first position is the class token.
    """

    pixels: NDArray[np.uint8]
    words: Labels
    patches: Labels
    gaze: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.words)


def make_pictures(seed: int, name: str) -> Pictures:
    """Draw the scenes of the purpose `name`; "heldout" is the held-out scenes in other drawings."""
    found = heldout_scenes(seed) if name == "heldout" else training_scenes(seed, name)
    rng = stream(seed, f"{name}/pretraining drawings")
    pixels: list[NDArray[np.uint8]] = []
    patches: list[list[Labels]] = []
    for scene in found:
        full, owner = draw(scene, rng)
        pixels.append(_shrunk(simplejpeg.decode_jpeg(encode_jpeg(full))))
        tables = [
            np.array([0] + [1 + names.index(getattr(thing, field)) for thing in scene.things])
            for field, names in FIELDS.items()
        ]
        patches.append([table[owner.reshape(-1) + 1] for table in tables])
    words = np.array([[WORDS.index(word) for word in keywords(scene)] for scene in found])
    labels = np.array(patches)
    return Pictures(np.stack(pixels), words, labels, _gaze(labels[:, 0]))


def _gaze(sizes_NP: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[N, Q, 1 + P] the patches of a query's object; none: the class token; last: background."""
    target = np.zeros((len(sizes_NP), NUM_KEYWORDS, 1 + sizes_NP.shape[1]), dtype=bool)
    for group, size in enumerate(reversed(range(len(SIZES)))):
        seen_NP = sizes_NP == size + 1
        target[:, 5 * group : 5 * group + 5, 1:] = seen_NP[:, None]
        target[:, 5 * group : 5 * group + 5, 0] = ~seen_NP.any(1)[:, None]
    target[:, -1, 1:] = sizes_NP == 0
    return target


def _shrunk(pixels_HW3: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Averages over `SHRINK` x `SHRINK` pixels."""
    height, width, _ = pixels_HW3.shape
    blocks = pixels_HW3.reshape(height // SHRINK, SHRINK, width // SHRINK, SHRINK, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)

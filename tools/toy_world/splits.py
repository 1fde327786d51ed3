"""Which scenes go where: the held-out ones are drawn first, everything else avoids them.

That holds for the data sources, for the pictures the vision towers are pre-trained on and for the
texts the language model is pre-trained on.
"""

from __future__ import annotations

from functools import lru_cache

from toy_world.scenes import Scene, scene_key, scenes, stream

NUM_HELDOUT = 100
NUM_PRETRAINING = {"vision": 16_000, "vision validation": 512, "tokenizer": 3_000, "llm": 38_400}
"""Scenes per purpose of the towers' pre-training; the language model sees each of its own once."""


@lru_cache(maxsize=4)
def heldout_scenes(seed: int) -> tuple[Scene, ...]:
    """The 100 held-out scenes, no two alike."""
    taken: set[str] = set()

    def is_new(key: str) -> bool:
        new = key not in taken
        taken.add(key)
        return new

    return tuple(scenes(stream(seed, "heldout/scenes"), NUM_HELDOUT, is_new))


@lru_cache(maxsize=4)
def heldout_keys(seed: int) -> frozenset[str]:
    """Keys of the held-out scenes."""
    return frozenset(map(scene_key, heldout_scenes(seed)))


def training_scenes(seed: int, name: str, count: int | None = None) -> list[Scene]:
    """`count` scenes for the purpose `name`, none of them held out; see NUM_PRETRAINING."""
    forbidden = heldout_keys(seed)
    count = NUM_PRETRAINING[name] if count is None else count
    return scenes(stream(seed, f"{name}/scenes"), count, lambda key: key not in forbidden)

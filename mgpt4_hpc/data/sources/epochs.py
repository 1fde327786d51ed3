"""How many samples a run's sources have, to train on and held out, and the steps of an epoch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.index.index_file import is_index
from mgpt4_hpc.data.sampling.order import SampleOrder, SourceSize
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.resources import resolve_path


def steps_of_epochs(values: Mapping[str, Any]) -> tuple[int, str]:
    """Steps that pass over all sources ``train.max_epochs`` times, and that as a sentence.

    One epoch has as many samples as all sources have together, without those held out; a mixture
    by weight passes over some of them more often than over others.

    Args:
        values: settings by dotted key, not validated yet.

    Raises:
        ConfigError: a source has no index, or the settings it needs are none.
        DataError: an index cannot be read.
    """
    try:
        epochs, batch = float(values["train.max_epochs"]), int(values["train.global_batch_size"])
        sizes = [_size(source) for source in values["data.sources"]]
        seed, fraction = int(values.get("seed", 42)), float(values.get("data.val_fraction", 0.0))
        order = SampleOrder(sizes, seed=seed, val_fraction=fraction)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"train.max_epochs cannot be converted: {error!r}") from None
    samples = sum(order.num_train(number) for number in range(len(sizes)))
    steps = max(1, math.ceil(epochs * samples / batch))
    counted = f"{samples:,} samples, {batch} a step"
    return steps, f"train.max_epochs {epochs:g} is train.max_steps {steps}: {counted}"


def held_out(name: str, index: str, val_fraction: float) -> tuple[int, int]:
    """How many samples of a source are held out, and how many it has.

    Raises:
        ConfigError: nothing is left to train on.
        DataError: the index cannot be read.
    """
    samples = ShardIndex.open(Path(index)).num_samples
    # The held-out blocks depend on the source alone, not on the seed.
    order = SampleOrder([SourceSize(name, samples, 1)], seed=0, val_fraction=val_fraction)
    return order.val_size(0), samples


def _size(source: Mapping[str, Any]) -> SourceSize:
    name, index = str(source["name"]), source.get("index")
    if not index or not is_index(Path(resolve_path(index))):
        raise ConfigError(
            f"train.max_epochs needs the number of samples of {name}, and it has no index",
            fix=f"mgpt4 data index SHARDS --out {name}.index, and set the source's index to it; or "
            "give train.max_steps",
        )
    opened = ShardIndex.open(Path(resolve_path(index)))
    return SourceSize(name, opened.num_samples, int(source.get("weight", 1)))

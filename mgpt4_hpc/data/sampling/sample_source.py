"""Which samples stand at positions, in training and in validation, and what replaces bad ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from mgpt4_hpc.data.sampling.order import SampleOrder

MAX_SUBSTITUTES = 16
"""Bad samples in a row after which something larger than a sample is broken."""


class Draws(Protocol):
    """Which samples stand at positions, and what replaces them."""

    def at(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        """(source id, sample id) of each position."""

    def substitute(self, source_id: int, position: int, attempt: int) -> int:
        """Sample id of the ``attempt``-th replacement (1, 2, ...) at ``position``."""


class TrainDraws:
    """The training sequence."""

    def __init__(self, order: SampleOrder) -> None:
        self._order = order

    def at(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        """(source id, sample id) of each position."""
        source_ids, sample_ids = self._order.lookup(positions)
        return list(zip(source_ids.tolist(), sample_ids.tolist(), strict=True))

    def substitute(self, source_id: int, position: int, attempt: int) -> int:
        """A random trained-on sample of the same source."""
        return self._order.substitute(source_id, position, attempt)


class ValDraws:
    """All held-out samples, source by source; a position counts through them."""

    def __init__(self, order: SampleOrder) -> None:
        self._order = order
        self._sizes = [order.val_size(source) for source in range(len(order.sources))]

    def __len__(self) -> int:
        return sum(self._sizes)

    def at(self, positions: Sequence[int]) -> list[tuple[int, int]]:
        """(source id, sample id) of each position."""
        return [self._find(position) for position in positions]

    def substitute(self, source_id: int, position: int, attempt: int) -> int:
        """A random held-out sample of the same source."""
        return self._order.substitute_val(source_id, position, attempt)

    def _find(self, position: int) -> tuple[int, int]:
        ordinal = position
        for source_id, size in enumerate(self._sizes):
            if ordinal < size:
                return source_id, int(self._order.lookup_val(source_id, [ordinal])[0])
            ordinal -= size
        raise IndexError(f"held-out sample {position}: there are {len(self)}")


def spread_ordinals(ordinals: range, available: int, used: int) -> list[int]:
    """Held-out samples number ``ordinals`` of the ``used`` ones, taken evenly from all of them."""
    return [ordinal * available // used for ordinal in ordinals]

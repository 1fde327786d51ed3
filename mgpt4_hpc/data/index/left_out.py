"""What lies in a tar or folder and is not used: counted, so that nothing is left out silently."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

_SHOWN = 4


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Members, files or samples that are not used for one reason.

    Attributes:
        reason: for people.
        extension: that all of them have, lower case, without the dot; may be empty.
        count: of them.
        example: the name of one.
    """

    reason: str
    extension: str
    count: int
    example: str

    def __str__(self) -> str:
        kind = f" (.{self.extension})" if self.extension else ""
        return f"{self.count:,} x {self.reason}{kind}, as {self.example}"


def add_up(entries: Iterable[LeftOut]) -> list[LeftOut]:
    """One entry for each reason and extension, the most frequent first; the first examples."""
    total: dict[tuple[str, str], LeftOut] = {}
    for entry in entries:
        known = total.get((entry.reason, entry.extension), replace(entry, count=0))
        total[entry.reason, entry.extension] = replace(known, count=known.count + entry.count)
    return sorted(total.values(), key=lambda entry: -entry.count)


def in_words(entries: Sequence[LeftOut]) -> str:
    """The most frequent ones in a sentence; empty for none."""
    more = f"; and {len(entries) - _SHOWN} further reasons" if len(entries) > _SHOWN else ""
    return "; ".join(map(str, entries[:_SHOWN])) + more

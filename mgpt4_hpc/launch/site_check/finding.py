"""One thing that a check of site, folder or machine found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is: only a fault stops a run from working here."""

    OK = "ok"
    NOTE = "note"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True)
class Finding:
    """What was found, and what to do about it.

    Attributes:
        level: how bad it is.
        topic: what it is about: "Slurm", "partition a100", "runs folder", "Python", "GPU".
        what: a sentence.
        fix: what to do, where there is something to be done.
    """

    level: Level
    topic: str
    what: str
    fix: str = ""


class Findings(list[Finding]):
    """Findings about one topic.

    Args:
        topic: of all that is added.
    """

    def __init__(self, topic: str) -> None:
        super().__init__()
        self.topic = topic

    def ok(self, what: str) -> None:
        """It is as it should be."""
        self.append(Finding(Level.OK, self.topic, what))

    def note(self, what: str, fix: str = "") -> None:
        """Worth knowing."""
        self.append(Finding(Level.NOTE, self.topic, what, fix))

    def warn(self, what: str, fix: str = "") -> None:
        """It works, and costs something or may fail."""
        self.append(Finding(Level.WARNING, self.topic, what, fix))

    def fault(self, what: str, fix: str) -> None:
        """A run would not work."""
        self.append(Finding(Level.FAULT, self.topic, what, fix))

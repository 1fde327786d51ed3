"""Stand-ins: a command that ended, and a Slurm that says what it is told."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from mgpt4_hpc.errors import SlurmUnreachable


@dataclass(frozen=True)
class Ended:
    """What a command wrote, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Mgpt4 = Callable[..., Ended]


@dataclass
class FakeSlurm:
    """Answers of Slurm's commands, as text; None does not answer."""

    squeue: str | None = ""
    sacct: str | None = ""
    cluster: str = "alpha"
    down: str = ""
    """Name of another cluster, which does not answer."""
    calls: list[list[str]] = field(default_factory=list)

    def __call__(self, command: list[str], cluster: str = "", **_: Any) -> str:
        self.calls.append(command)
        answer = getattr(self, command[0], "") if not cluster or cluster != self.down else None
        if answer is None:
            raise SlurmUnreachable(f"`{' '.join(command)}` cannot reach Slurm: it is down")
        return answer

    def called(self, name: str) -> list[list[str]]:
        return [command for command in self.calls if command[0] == name]


def replace_sleep(
    monkeypatch: pytest.MonkeyPatch, module: str, sleep: Callable[[float], object]
) -> None:
    """Replace ``time.sleep`` in one module alone: other threads of this process sleep too."""
    monkeypatch.setattr(f"{module}.time", SimpleNamespace(**{**vars(time), "sleep": sleep}))


def squeue_row(job_id: str, state: str, reason: str = "None", **changed: object) -> str:
    """A row of squeue in our format, padded as it pads."""
    cells = {
        "id": job_id,
        "state": state,
        "reason": reason,
        "nodes": "node[1-2]",
        "eligible": "N/A",
        "start": "N/A",
        "preempt": "N/A",
        "restarts": 0,
        "code": 0,
        "dependency": "(null)",
        "user": "",
        "name": "",
        "dir": "",
        **changed,
    }
    return "".join(f"{cell!s:<20}|" for cell in cells.values()) + "\n"

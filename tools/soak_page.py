"""The page docs/reliability.md from the results of the soak's parts. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Case = Mapping[str, Any]

INTRODUCTION = """\
# Reliability

Written by `make soak` from its own results; `tools/soak.py` says how. What a run does in each case,
and why, is in [preemption.md](preemption.md).
"""

FAULTS = """\
## Faults on a real Slurm

Each row is one run of 200 steps on the test cluster of `tools/devcluster`, struck in its middle.
*passed* means that the run ended with the projector of a run that was left alone, to the bit, with
every step exactly once in TensorBoard (on another number of ranks: with losses within 1e-4), or,
for `scancel`, that it saved, stopped and stayed away. *To durable* is the longest time from a
signal to a durable checkpoint; where Slurm told the end and steps were made until near it, from the
last of them: 5 s at most. *To first step* is the longest time from a restarted process to its first
finished step: 60 s at most. `tests/slurm/faults.py` has what is done in each.
"""

CRASHES = """\
## Crashes of the writer

Disk states that a crash could have left behind, rebuilt and resumed from, and a writer that is
killed at random moments. Passed is what resumed every time, from a complete checkpoint no older
than the last one reported durable.
"""

OTHERS = """\
## Other long tests
"""


def render(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """The page as Markdown; a part that never ran says so.

    Args:
        parts: results as `tools/soak.py` stores them, by the part's name.
    """
    sections = [INTRODUCTION]
    for part, text, table in (
        ("faults", FAULTS, _faults),
        ("crashes", CRASHES, _plain),
        ("others", OTHERS, _plain),
    ):
        sections.append(text)
        found = parts.get(part)
        if found is None:
            sections.append(f"Not run yet: `python tools/soak.py --only {part}`.\n")
            continue
        sections += [_place(part, found), table(found["cases"])]
    return "\n".join(sections)


def _place(part: str, found: Mapping[str, Any]) -> str:
    cases: Sequence[Case] = found["cases"]
    passed = sum(case["result"] == "passed" for case in cases)
    minutes = sum(case["seconds"] for case in cases) / 60
    lines = [
        f"- {passed} of {len(cases)} passed, in {minutes:.0f} minutes, last on {found['date']}: "
        f"`python tools/soak.py --only {part}`",
        f"- {found['machine']}, load {found['load'][0]} in the end; {found['slurm']}; "
        f"Python {found['python']}",
        f"- {found['libraries']}",
    ]
    return "\n".join(lines) + "\n"


def _faults(cases: Sequence[Case]) -> str:
    lines = [
        "| fault | result | attempts | causes | steps replayed | to durable, s | to first step, s |"
        " in all, s | commit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        told = case["told"]
        lines.append(
            _row(
                told.get("fault", case["name"]),
                _result(case),
                told.get("attempts", "-"),
                told.get("causes", "-"),
                told.get("steps_replayed", "-"),
                _seconds(told.get("durable_s")),
                _seconds(told.get("first_step_s")),
                f"{case['seconds']:.0f}",
                case["commit"],
            )
        )
    return "\n".join(lines) + "\n"


def _plain(cases: Sequence[Case]) -> str:
    lines = ["| test | result | seconds | commit |", "|---|---|---|---|"]
    lines += [
        _row(case["name"], _result(case), f"{case['seconds']:.0f}", case["commit"])
        for case in cases
    ]
    return "\n".join(lines) + "\n"


def _result(case: Case) -> str:
    word = "FAILED" if case["result"] == "failed" else case["result"]
    return f"{word}: {case['message']}" if case["message"] else word


def _seconds(text: str | None) -> str:
    return "-" if text is None else f"{float(text):.2f}"


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"

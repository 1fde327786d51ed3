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

Each cell is one run of 200 steps on the test cluster of `tools/devcluster`, struck in its middle,
on one release of Slurm. *passed* means that the run ended with the projector of a run that was left
alone, to the bit, with every step exactly once in TensorBoard (on another number of ranks: with
losses within 1e-4), or, for `scancel`, that it saved, stopped and stayed away. Rows about chains,
arrays, successors, suspended jobs and many preemptions are jobs of their own: there *passed* means
that each ended once, a run with every step exactly once in TensorBoard, and that what waited for it
started or, after a failure or a cancel, did not. *durable* is the
longest time from a signal to a durable checkpoint; where Slurm reported the end and steps were made
until near it, from the last of them: 5 s at most. Where no signal came, it is left out. *first
step* is the longest time from a restarted process to its first finished step: 60 s at most. *next
run* is the time from the end of a run to the start of the run that waits for it: 15 s at most.
`tests/slurm/faults.py` has what is done in each.
"""

CRASHES = """\
## Crashes of the writer

Disk states that a crash could have left behind, rebuilt and resumed from, and a writer that is
killed at random moments. Passed is what resumed every time, from a complete checkpoint no older
than the last one reported durable.
"""

IDENTITY = """\
## A run and its folder

Folders that are deleted, moved and copied while jobs run, names that are used again, and two Slurm
clusters on one file system; then storage, memory, processors, ports and clocks that fail. Each of
these faults ends with the projector of a run that was left alone, to the bit, or, for `scancel`,
with a saved and cancelled run. `tests/slurm/folder_faults.py` has what is done in each.

In a random schedule submissions, resumes, requeues, kills, deletions, moves and copies come in any
order. It passes if no checkpoint of one run is in another's folder, no job without a folder lives
on, no job was cancelled that nobody asked to cancel, no running run was deleted, and every finished
projector is, to the bit, that of an undisturbed run of its settings.
"""

OTHERS = """\
## Other long tests
"""


def render(
    faults: Mapping[str, Mapping[str, Any] | None], parts: Mapping[str, Mapping[str, Any] | None]
) -> str:
    """The page as Markdown; a part that never ran says so.

    Args:
        faults: results of the faults as `tools/soak.py` stores them, by the release of Slurm.
        parts: those of the other parts, by the part's name.
    """
    sections = [INTRODUCTION, FAULTS]
    for release, found in faults.items():
        command = f"--only faults --slurm {release}"
        sections.append(f"Slurm {release}:\n\n{_place(command, found)}")
    sections.append(_matrix(faults))
    for part, text, table in (
        ("crashes", CRASHES, _plain),
        ("identity", IDENTITY, _identity),
        ("others", OTHERS, _plain),
    ):
        found = parts.get(part)
        sections += [text, _place(f"--only {part}", found)]
        if found is not None:
            sections.append(table(found["cases"]))
    return "\n".join(sections)


def _place(arguments: str, found: Mapping[str, Any] | None) -> str:
    command = f"`python tools/soak.py {arguments}`"
    if found is None:
        return f"Not run yet: {command}.\n"
    cases: Sequence[Case] = found["cases"]
    passed = sum(case["result"] == "passed" for case in cases)
    minutes = sum(case["seconds"] for case in cases) / 60
    commits = ", ".join(sorted({case["commit"] for case in cases}))
    lines = [
        f"- {passed} of {len(cases)} passed, in {minutes:.0f} minutes, last on {found['date']}, "
        f"at {commits}: {command}",
        f"- {found['machine']}, load {found['load'][0]} in the end; Slurm {found['slurm']}; "
        f"Python {found['python']}",
        f"- {found['libraries']}",
        *([f"- {found['note']}"] if "note" in found else []),
    ]
    return "\n".join(lines) + "\n"


def _matrix(faults: Mapping[str, Mapping[str, Any] | None]) -> str:
    """A row for each fault, a column for each release."""
    cells: dict[str, dict[str, str]] = {}
    for release, found in faults.items():
        for case in found["cases"] if found else ():
            row = cells.setdefault(case["told"].get("fault") or _words(case["name"]), {})
            row[release] = _cell(case)
    lines = [_row("fault", *faults), "|" + "---|" * (len(faults) + 1)]
    lines += [
        _row(name, *(row.get(release, "not run") for release in faults))
        for name, row in cells.items()
    ]
    return "\n".join(lines) + "\n"


def _words(test: str) -> str:
    """A test's name as a sentence."""
    return test.rpartition(".test_")[2].replace("_", " ").replace("[", " [")


def _cell(case: Case) -> str:
    told = case["told"]
    figures = [
        text.format(told[key] if key in ("attempts", "steps_replayed") else float(told[key]))
        for key, text in (
            ("attempts", "{} attempts"),
            ("steps_replayed", "{} replayed"),
            ("durable_s", "durable {:.2f} s"),
            ("first_step_s", "first step {:.1f} s"),
            ("next_s", "next run after {:.1f} s"),
        )
        if key in told
    ]
    return ", ".join([_result(case), *figures])


def _plain(cases: Sequence[Case]) -> str:
    lines = ["| test | result | seconds | commit |", "|---|---|---|---|"]
    lines += [
        _row(case["name"], _result(case), f"{case['seconds']:.0f}", case["commit"])
        for case in cases
    ]
    return "\n".join(lines) + "\n"


def _identity(cases: Sequence[Case]) -> str:
    """A row for each fault; the random schedules are one row, and a row for each that failed."""
    drawn = [case for case in cases if ".test_schedules." in case["name"]]
    passed = [case for case in drawn if case["result"] == "passed"]
    lines = [_row("what was done", "what happened", "seconds", "date", "commit"), "|---" * 5 + "|"]
    for case in cases:
        if case not in passed:
            done = case["told"].get("fault") or _words(case["name"])
            lines.append(_row(done, _cell(case), f"{case['seconds']:.0f}", *_when([case])))
    if drawn:
        seconds = f"{sum(case['seconds'] for case in drawn):.0f}"
        name = f"{len(drawn)} random schedules"
        lines.append(_row(name, f"{len(passed)} passed", seconds, *_when(drawn)))
    return "\n".join(lines) + "\n"


def _when(cases: Sequence[Case]) -> tuple[str, str]:
    """Dates and commits of these tests."""
    return (
        ", ".join(dict.fromkeys(case["date"] for case in cases)),
        ", ".join(dict.fromkeys(case["commit"] for case in cases)),
    )


def _result(case: Case) -> str:
    word = "FAILED" if case["result"] == "failed" else case["result"]
    return f"{word}: {case['message']}" if case["message"] else word


def _row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", r"\|") for cell in cells) + " |"

"""Jobs that wait for another job of the same user, and what they wait for.

squeue prints a dependency as ``afterok:17(unfulfilled),afterany:18_*(unfulfilled)``, with ``?``
instead of the commas where any one suffices, and without what is fulfilled already. scontrol takes
the same text; it accepts ``(failed)`` there and refuses to believe ``(fulfilled)``.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from mgpt4_hpc.launch.slurm.commands import run_slurm

_TERM = re.compile(
    r"(?P<kind>[a-z]+)(?::(?P<job>\d+)(?:_(?P<task>\d+|\*))?(?P<delay>\+\d+)?)?"
    r"(?:\((?P<state>\w+)\))?"
)


@dataclass(frozen=True)
class Term:
    """One condition of a dependency.

    Attributes:
        kind: as ``afterok``.
        job: id of the job or array; empty for ``singleton``.
        task: of the array, ``*`` for all of it; empty for a job that is no array's.
        delay: as ``+5``, minutes of ``after``.
        state: ``unfulfilled`` or ``failed``.
    """

    kind: str
    job: str = ""
    task: str = ""
    delay: str = ""
    state: str = "unfulfilled"

    def __str__(self) -> str:
        """The term as Slurm writes it."""
        job = f":{self.job}" if self.job else ""
        task = f"_{self.task}" if self.task else ""
        # Always with its state: Slurm reads a missing one from the next term, and drops that.
        return f"{self.kind}{job}{task}{self.delay}({self.state})"


@dataclass(frozen=True)
class Dependency:
    """What a job waits for.

    Attributes:
        terms: its conditions.
        any_suffices: whether one fulfilled term starts the job; otherwise all are needed.
    """

    terms: tuple[Term, ...]
    any_suffices: bool = False

    def __str__(self) -> str:
        """The text that ``scontrol update`` takes; empty lifts the dependency."""
        return ("?" if self.any_suffices else ",").join(map(str, self.terms))


@dataclass(frozen=True)
class JobName:
    """The ids under which a dependency may name a job.

    Attributes:
        job: its own id; for an array's task an id that Slurm rarely shows.
        array: id of its array, empty if it is in none.
        task: its number in the array.
    """

    job: str
    array: str = ""
    task: str = ""

    @classmethod
    def of(cls, job_id: str, environ: Mapping[str, str] = os.environ) -> JobName:
        """The job ``job_id`` (``17`` or ``17_3``) that this process belongs to."""
        array, _, task = job_id.partition("_")
        return cls(environ.get("SLURM_JOB_ID", ""), array, task) if task else cls(job_id)

    def is_meant(self, term: Term) -> bool:
        """Whether ``term`` waits for this job and no other."""
        if self.array and (term.job, term.task) == (self.array, self.task):
            return True
        # One task of an array has the array's own id; with it Slurm means the whole array.
        return term.job == self.job != self.array and not term.task

    def is_among(self, term: Term) -> bool:
        """Whether ``term`` waits for the whole array that this job is a task of."""
        return bool(self.array) and term.job == self.array and term.task in ("", "*")


def parse_dependency(text: str) -> Dependency:
    """A dependency as squeue prints it.

    Raises:
        ValueError: the text is none.
    """
    terms = []
    for part in filter(None, re.split(r"[,?]", text)):
        match = _TERM.fullmatch(part)
        if match is None:
            raise ValueError(f"{part!r} is no dependency")
        given = {name: value for name, value in match.groupdict().items() if value}
        terms.append(Term(**given))
    return Dependency(tuple(terms), "?" in text)


def after_success(
    dependency: Dependency, name: JobName, others: Sequence[str], *, corresponds: bool = False
) -> Dependency:
    """What is left to wait for once the job ``name`` has done all that it was to do.

    Args:
        dependency: of a waiting job.
        name: the job.
        others: tasks of its array that are not known to have ended well.
        corresponds: whether the waiting job has the same number in its array.
    """
    remaining: list[Term] = []
    fulfilled = False
    for term in dependency.terms:
        replaced = _terms_after_success(term, name, others, corresponds)
        fulfilled |= not replaced
        remaining += replaced
    if fulfilled and dependency.any_suffices:
        return Dependency(())
    return Dependency(tuple(remaining), dependency.any_suffices)


def _terms_after_success(
    term: Term, name: JobName, others: Sequence[str], corresponds: bool
) -> list[Term]:
    """What takes the term's place; nothing if it is fulfilled."""
    if term.kind == "afterok" and name.is_meant(term):
        return []
    if term.kind == "afternotok" and name.is_meant(term):
        return [replace(term, state="failed")]  # Slurm would count the job's end as a failure
    if term.kind == "afterok" and name.is_among(term):
        return [replace(term, task=task) for task in others]
    if term.kind == "aftercorr" and name.is_among(term) and corresponds:
        return []
    return [term]


def on_successor(
    dependency: Dependency, name: JobName, successor: str, others: Sequence[str]
) -> Dependency:
    """The dependency when the job ``successor`` takes the place of the job ``name``."""
    terms: list[Term] = []
    for term in dependency.terms:
        if term.kind == "after":
            terms.append(term)  # it asks that the job began, and it did
        elif name.is_meant(term):
            terms.append(replace(term, job=successor, task=""))
        elif name.is_among(term) and term.kind in ("afterok", "afterany"):
            terms += [replace(term, task=task) for task in others]
            terms.append(replace(term, job=successor, task=""))
        else:
            terms.append(term)
    return Dependency(tuple(terms), dependency.any_suffices)


def waiting_jobs(*, timeout_s: float) -> dict[str, Dependency]:
    """What each waiting job of this user waits for, by id; of an array as ``18_[0-9]``.

    Raises:
        SlurmUnreachable, SlurmRejected: as Slurm says.
    """
    jobs = {}
    for job_id, text in _squeue(["--states=PENDING", "--format=%i|%E"], timeout_s):
        try:
            dependency = parse_dependency("" if text in ("(null)", "N/A") else text)
        except ValueError:
            continue  # of a kind that is newer than this program
        if dependency.terms:
            jobs[re.sub(r"%\d+(?=\])", "", job_id)] = dependency
    return jobs


def other_tasks(name: JobName, *, timeout_s: float) -> list[str]:
    """Tasks of the array of ``name``, itself apart, that are not known to have ended well.

    Raises:
        SlurmUnreachable, SlurmRejected: as Slurm says.
    """
    if not name.array:
        return []
    options = ["--array", "--states=all", f"--jobs={name.array}", "--format=%i|%T"]
    rows = _squeue(options, timeout_s)
    tasks = {job_id.partition("_")[2] for job_id, state in rows if state != "COMPLETED"}
    return sorted((task for task in tasks if task.isdigit() and task != name.task), key=int)


def _squeue(options: Sequence[str], timeout_s: float) -> list[tuple[str, str]]:
    """Two columns of this user's jobs, whatever filters and formats are the user's own."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("SQUEUE_")}
    environ["SLURM_BITSTR_LEN"] = "0"  # a long list of tasks in full
    command = ["squeue", "--me", "--noheader", *options]
    output = run_slurm(command, timeout_s=timeout_s, environ=environ)
    rows = [line.strip().partition("|") for line in output.splitlines()]
    return [(first, second) for first, bar, second in rows if bar]


def wait_for(job_id: str, other: str) -> None:
    """Let a job start after the success of ``other``, and after nothing else.

    Raises:
        SlurmRejected, SlurmUnreachable: as Slurm says.
    """
    run_slurm(["scontrol", "update", f"JobId={job_id}", f"Dependency=afterok:{other}"])


def update_dependency(job_id: str, dependency: Dependency, *, timeout_s: float) -> None:
    """Let a waiting job wait for something else. Raises SlurmUnreachable or SlurmRejected."""
    command = ["scontrol", "update", f"JobId={job_id}", f"Dependency={dependency}"]
    run_slurm(command, timeout_s=timeout_s)

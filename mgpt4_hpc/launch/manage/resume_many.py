"""Resume several runs at once: the lost runs of a sweep, or a handful of names."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cache

from mgpt4_hpc.errors import MgptError, RunAlive
from mgpt4_hpc.launch.manage.changes import Overrides
from mgpt4_hpc.launch.manage.concurrency_limit import ConcurrencyLimit
from mgpt4_hpc.launch.manage.resume import Resumption, resume_run
from mgpt4_hpc.launch.runs.wait import wait_for_runs
from mgpt4_hpc.run_dir import RunDir


def resume_many(
    runs: Sequence[RunDir],
    overrides: Overrides,
    executor: str | None,
    *,
    say: Callable[[str], None],
    limits: Mapping[RunDir, ConcurrencyLimit] | None = None,
    keeps_budgets: bool = False,
    dry_run: bool = False,
) -> tuple[list[Resumption], list[MgptError]]:
    """Submit each unfinished run again, whatever becomes of the others.

    Runs that wait or run already are left alone. On this machine, which cannot divide its GPUs
    among them, each run begins when the one before has ended.

    Arguments are ``resume_run``'s, for each of the runs, which are taken in the order given; and
    ``limits``, of those runs that may not all be at work at once.

    Returns:
        What became of those that could be resumed, and why the others could not: each reason once,
        with the names of its runs where there are several.
    """
    done: list[Resumption] = []
    # What is wrong with the command itself is wrong for every run, and is one error.
    failed: dict[str, tuple[MgptError, list[str]]] = {}
    here: RunDir | None = None
    say_once = cache(say)  # what holds for every run is printed once
    for run in runs:
        if here is not None:
            try:
                wait_for_runs([here], say=say)
            except MgptError as error:
                failed.setdefault(str(error), (error, []))[1].append(here.name)
        here = None
        turn = (limits or {}).get(run)
        behind = turn.next if turn is not None else ()
        try:
            resumption = resume_run(
                run,
                overrides,
                executor,
                say=say_once,
                behind=behind,
                keeps_budgets=keeps_budgets,
                dry_run=dry_run,
            )
        except RunAlive as error:
            say(f"left alone: {error.what}")
            continue
        except MgptError as error:
            say(f"{run.name} could not be resumed")
            failed.setdefault(str(error), (error, []))[1].append(run.name)
            continue
        done.append(resumption)
        if resumption.submitted is not None and resumption.submitted.executor == "local":
            here = run
        elif resumption.submitted is not None and turn is not None:
            turn.take(resumption.submitted.job_id)
    return done, _with_names(failed.values())


def _with_names(failed: Collection[tuple[MgptError, Sequence[str]]]) -> list[MgptError]:
    """The reasons; where there are several, each with its runs."""
    if len(failed) > 1:
        for reason, names in failed:
            reason.what = f"{', '.join(names)}: {reason.what}"
    return [reason for reason, _ in failed]

"""Errors cross process boundaries and reach the user whole."""

from __future__ import annotations

import pickle

import pytest

from mgpt4_hpc import errors
from mgpt4_hpc.checkpoint.manifest import DamagedCheckpointError


def all_errors(cls: type = errors.MgptError) -> list[type]:
    return [cls, *[below for sub in cls.__subclasses__() for below in all_errors(sub)]]


@pytest.mark.parametrize("cls", all_errors())
def test_every_error_survives_the_way_to_another_process(cls: type[errors.MgptError]) -> None:
    error = pickle.loads(pickle.dumps(cls("what", why="why", fix="fix")))
    assert type(error) is cls
    assert (error.what, error.why, error.fix) == ("what", "why", "fix")
    assert str(error) == "what\n  why: why\n  fix: fix"


def test_a_list_of_faults_survives_it_too() -> None:
    error = pickle.loads(pickle.dumps(errors.PreflightError("no", faults=["a", "b"], fix="mend")))
    assert error.faults == ["a", "b"]
    assert str(error) == "no\n  - a\n  - b\n  fix: mend"


def test_the_drawing_in_the_docstring_is_the_tree() -> None:
    drawn = errors.__doc__ or ""
    for cls in all_errors():
        if cls.__module__ != errors.__name__ or cls is errors.FaultList:
            continue
        line = next(line for line in drawn.splitlines() if f" {cls.__name__} " in line)
        assert line.split(cls.__name__)[1].split()[0] == str(cls.exit_code), line


@pytest.mark.parametrize(
    ("cls", "repeats"),
    [
        (errors.ConfigError, True),
        (errors.RunLocked, True),
        (errors.DataError, True),
        (errors.WorkerDied, False),
        (errors.FatalTrainingError, True),
        (errors.CheckpointError, False),
        (DamagedCheckpointError, False),
        (errors.RendezvousError, False),
        (errors.SlurmUnreachable, False),
        (errors.BadNode, False),
    ],
)
def test_only_what_would_repeat_fails_a_run_for_good(
    cls: type[errors.MgptError], repeats: bool
) -> None:
    assert cls.will_repeat is repeats

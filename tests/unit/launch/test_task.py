"""Tests of ``launch/task.py``."""

from __future__ import annotations

import pickle

import pytest

from mgpt4_hpc.launch.task import StageTask


@pytest.fixture(autouse=True)
def as_a_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_JOB_ID": "99",
        "SUBMITIT_LOCAL_NTASKS": "1",
        "SUBMITIT_LOCAL_GLOBALID": "0",
        "SUBMITIT_LOCAL_LOCALID": "0",
    }.items():
        monkeypatch.setenv(name, value)


def test_what_is_pickled_is_a_path_and_nothing_else() -> None:
    again = pickle.loads(pickle.dumps(StageTask("/runs/x")))
    assert vars(again) == {"run_dir": "/runs/x"}

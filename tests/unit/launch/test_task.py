"""Tests of ``launch/task.py``."""

from __future__ import annotations

import pickle

from mgpt4_hpc.launch.task import StageTask


def test_what_is_pickled_is_a_path_and_nothing_else() -> None:
    again = pickle.loads(pickle.dumps(StageTask("/runs/x")))
    assert vars(again) == {"run_dir": "/runs/x"}

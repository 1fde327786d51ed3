"""Tests of ``launch/slurm/node_exclusion.py``."""

from __future__ import annotations

from mgpt4_hpc.launch.slurm.node_exclusion import exclude_nodes
from tests.unit.launch.fakes import FakeScontrol


def test_an_exclusion_that_is_refused_is_told_and_not_raised(scontrol: FakeScontrol) -> None:
    assert "n1 could not be excluded" in exclude_nodes("17", ["n1"])  # `scontrol show` fails here

"""Tests of ``launch/slurm/accounting.py``."""

from __future__ import annotations

import os
import pwd

import pytest

from mgpt4_hpc.launch.slurm import commands
from mgpt4_hpc.launch.slurm.accounting import Association, parse_associations
from mgpt4_hpc.launch.submit.preflight_slurm import (
    ask_cluster,
)
from tests.unit.launch.submit.preflight_slurm_cases import (
    answering,
)


def test_associations() -> None:
    rows = [["a", "", "normal,high"], ["b", "gpu", ""], [""], ["error: x"]]
    assert parse_associations(rows) == (
        Association("a", qos=frozenset({"normal", "high"})),
        Association("b", "gpu"),
    )


@pytest.fixture(autouse=True)
def _node_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``scontrol show hostnames`` has them."""
    names = {"n[2,7]": "n2\nn7\n", "n[1-2]": "n1\nn2\n"}
    monkeypatch.setattr(commands, "run_slurm", lambda asked: names.get(asked[-1], asked[-1]))


def test_accounts_and_limits_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER"):
        monkeypatch.setenv(name, "somebody-else")  # as su leaves it; Slurm goes by the process
    asked = answering(
        monkeypatch,
        associations="mine||normal,short\nlab|lab|long\n",
        qos="normal|\nshort|01:00:00\n",
    )
    seen = ask_cluster()
    assert seen.associations == (
        Association("mine", "", frozenset({"normal", "short"})),
        Association("lab", "lab", frozenset({"long"})),
    )
    assert seen.qos_limits_s == {"normal": None, "short": 3600.0}
    name = pwd.getpwuid(os.getuid()).pw_name
    assert f"user={name}" in next(c for c in asked if "associations" in c)

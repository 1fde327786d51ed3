"""Tests of ``launch/site_check/doctor.py``."""

from __future__ import annotations

from mgpt4_hpc.launch.site_check.doctor import choose
from mgpt4_hpc.launch.site_check.finding import Finding, Level
from tests.unit.launch.site_check.recorded_sites import site, told


def test_which_partitions_are_looked_at() -> None:
    found = site()
    findings: list[Finding] = []
    assert [one.name for one in choose(found, None, findings)] == ["a100", "a100-preempt"]
    assert choose(found, "a10", findings) == []
    assert "use one of: a100, a100-preempt" in told(findings, Level.FAULT)

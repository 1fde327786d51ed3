"""Tests of ``launch/runs/logs.py``."""

import pytest

from mgpt4_hpc.launch.runs.logs import split_starts

START = "submitit INFO (2026-11-22 15:26:43,760) - Starting with JobEnvironment(job_id=17)\n"


@pytest.mark.parametrize(
    "text",
    ["", "no start\n", START, START + "a\n" + START + "b\n", "before\n" + START + "a", "\n\n"],
)
def test_cutting_loses_nothing(text: str) -> None:
    parts = split_starts(text.encode())
    assert b"".join(parts) == text.encode()
    assert len(parts) == max(text.count("Starting with") + text.startswith("before"), bool(text))

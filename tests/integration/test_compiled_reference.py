"""The compiled step computes what the original computed; by itself, as compiling takes a while."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.runs import patience

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    "name", ["vicuna_tiny", pytest.param("llama2_tiny", marks=pytest.mark.soak)]
)
def test_compiled_everything_agrees(name: str) -> None:
    done = subprocess.run(
        [
            sys.executable,
            ROOT / "tools" / "check_reference.py",
            ROOT / "tests" / "reference" / name,
            *("--path", "compiled", "--json"),
        ],
        capture_output=True,
        text=True,
        timeout=300 * patience(),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["path"] == "compiled" and len(found["rows"]) == 19

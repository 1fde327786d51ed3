"""Makes the builder in tools/ importable and points at the shipped product."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools"))


@pytest.fixture(scope="session")
def product() -> Path:
    """Folder of the shipped toy world."""
    return ROOT / "mgpt4_hpc" / "toy_world"

"""Fixtures of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def product() -> Path:
    """Folder of the shipped toy world."""
    return ROOT / "mgpt4_hpc" / "toy_world"

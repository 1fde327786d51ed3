"""Fixtures of every suite."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.tiny_world import TinyWorld, build_tiny_world

_MAKES_THE_DEMO = {"demo", "trained"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep what belongs together in one process where ``pytest -n`` has several.

    A file's tests share fixtures, and those that need the demo's runs share a minute of training.
    """
    for item in items:
        fixtures = set(getattr(item, "fixturenames", ()))
        group = "demo" if fixtures & _MAKES_THE_DEMO else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture(scope="session")
def tiny_world(tmp_path_factory: pytest.TempPathFactory) -> TinyWorld:
    """Random model, random pictures: a run takes seconds."""
    return build_tiny_world(tmp_path_factory.mktemp("tiny-world") / "world")


@pytest.fixture
def runs_dir(tmp_path: Path) -> Path:
    """A folder for run directories."""
    return tmp_path / "runs"

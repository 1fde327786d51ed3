"""Fixtures for the commands."""

import pytest


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(elsewhere: None) -> None:
    """Every test here, also one that starts the command in another process."""

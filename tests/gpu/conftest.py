"""Every test here needs an NVIDIA GPU."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch

from tests.gpu.steps import make_model

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark this folder's tests, and skip them where there is no GPU."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))


@pytest.fixture(scope="session", autouse=True)
def libraries() -> None:
    """Import what models need: some import keeps a traceback, and with it its callers' models."""
    if torch.cuda.is_available():
        make_model()


@pytest.fixture
def cuda() -> torch.device:
    """The first GPU, as empty as it can be made."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.device("cuda", 0)

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.model.generation.chat_model import ChatModel, find_source
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run


@pytest.fixture(scope="session")
def chat_model(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> ChatModel:
    run = make_trained_run(tiny_world, tmp_path_factory.mktemp("runs") / "talks")
    return ChatModel(find_source(run.path), device="cpu")


@pytest.fixture
def image(tiny_world: TinyWorld) -> Path:
    return tiny_world.align / "image" / "0.jpg"


@pytest.fixture
def other_image(tiny_world: TinyWorld) -> Path:
    return tiny_world.align / "image" / "1.jpg"

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.model.generation.chat_model import ChatModel, find_source
from mgpt4_hpc.run_dir import RunDir
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run


@pytest.fixture(scope="session")
def run(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_trained_run(tiny_world, tmp_path_factory.mktemp("runs") / "talks")


@pytest.fixture(scope="session")
def chat_model(run: RunDir) -> ChatModel:
    return ChatModel(find_source(run.path), device="cpu")


@pytest.fixture
def image(tiny_world: TinyWorld) -> Path:
    return tiny_world.align / "image" / "0.jpg"


@pytest.fixture
def other_image(tiny_world: TinyWorld) -> Path:
    return tiny_world.align / "image" / "1.jpg"

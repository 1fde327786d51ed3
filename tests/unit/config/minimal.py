"""The smallest settings that are valid, and the faults of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.config.load import (
    load_config,
)
from mgpt4_hpc.errors import ConfigError

MINIMAL: dict[str, Any] = {
    "stage": 1,
    "model": {"weights": "/w"},
    "data": {"sources": [{"name": "laion", "path": "/d"}]},
    "train": {"global_batch_size": 8, "micro_batch_size": 2, "max_steps": 10, "lr": 0.01},
}


def faults_of(path: Path, **kwargs: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load_config(path, **kwargs)
    return caught.value.faults

"""img2dataset's own environment for tests: made once by the command's installer, beside ours."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from mgpt4_hpc.data.sources.download import IMG2DATASET


@cache
def img2dataset_environment() -> Path:
    """The folder of an environment that has img2dataset; half a minute where there is none yet."""
    folder = Path(os.environ.get(IMG2DATASET.variable) or Path(sys.prefix) / "img2dataset")
    IMG2DATASET.ensure_environment(folder)
    return folder

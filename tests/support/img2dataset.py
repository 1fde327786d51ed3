"""img2dataset's own environment for tests: made once by the command's installer, beside ours."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

from mgpt4_hpc.data.sources.download_env import ENV_VARIABLE, ensure_environment


@cache
def img2dataset_environment() -> Path:
    """The folder of an environment that has img2dataset; half a minute where there is none yet."""
    folder = Path(os.environ.get(ENV_VARIABLE) or Path(sys.prefix) / "img2dataset")
    ensure_environment(folder)
    return folder

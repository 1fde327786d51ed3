"""The package as it was before its modules moved: it makes what users have on disk."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ARCHIVE = Path(__file__).with_name("stored") / "mgpt4_hpc-a55da2f.tar.xz"


@dataclass(frozen=True)
class StoredCode:
    """A folder with the older package.

    Attributes:
        folder: has ``mgpt4_hpc`` in it.
    """

    folder: Path

    @classmethod
    def unpack(cls, folder: Path) -> StoredCode:
        with tarfile.open(ARCHIVE) as archive:
            archive.extractall(folder, filter="data")
        return cls(folder)

    def begin(
        self, *arguments: object, env: Mapping[str, str] = os.environ
    ) -> subprocess.Popen[str]:
        """Start the older ``mgpt4``."""
        environment = {
            **env,
            "PYTHONPATH": str(self.folder),
            "PYTHONSAFEPATH": "1",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.Popen(
            [sys.executable, "-m", "mgpt4_hpc.cli.main", *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: object, env: Mapping[str, str] = os.environ) -> str:
        """Run the older ``mgpt4`` to its end; what it printed on stdout."""
        with self.begin(*arguments, env=env) as process:
            output, errors = process.communicate(timeout=600)
        assert process.returncode == 0, errors
        return output

"""The command that runs on a node imports this package and nothing of the folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mgpt4_hpc.launch.slurm.srun import srun_command


def test_on_a_node_no_file_of_the_folder_is_imported(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise SystemExit('imported')\n")
    command = srun_command(["version", "--help"])
    there = command[command.index(sys.executable) :]
    ended = subprocess.run(there, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr

"""In a container the job's own variables reach the rank, whatever the image has set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.launch.job.launcher_script import write_shim
from mgpt4_hpc.launch.submit.container import lines_inside
from mgpt4_hpc.run_dir import RunDir

GOLDEN = Path(__file__).parent / "golden" / "container-pyxis.launcher"
REPORT = (
    "import os; print(*(os.environ.get(n) for n in ('PYTHONPATH', 'PYTHONSAFEPATH', 'A', 'B')))"
)


def config_with(**container: str) -> RunConfig:
    settings = {f"container.{key}": value for key, value in container.items()}
    settings["launch.env.A"] = "the job's $A"
    return load_config("stage1-vicuna7b", overrides=settings).config


PYXIS = {"runtime": "pyxis", "image": "image"}


def test_the_launcher_is_the_golden_one(tmp_path: Path) -> None:
    lines = lines_inside(RunDir(Path("/scratch/runs/my run")), config_with(**PYXIS))
    script = write_shim(tmp_path / "python", "/opt/conda/bin/python", lines).read_text()
    if os.environ.get("MGPT4_UPDATE_GOLDEN"):
        GOLDEN.write_text(script)
    assert script == GOLDEN.read_text()


def test_an_images_own_variables_do_not_win(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "it's a run")
    run.path.mkdir()
    shim = write_shim(run.path / "python", sys.executable, lines_inside(run, config_with(**PYXIS)))
    image = {"PATH": os.environ["PATH"], "PYTHONPATH": "/of/the/image", "A": "x", "B": "image"}
    done = subprocess.run(
        ["/bin/sh", str(shim), "-c", REPORT], env=image, capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{run.code}:/of/the/image 1 the job's $A image\n"


def test_without_a_container_setup_lines_may_change_them() -> None:
    assert lines_inside(RunDir(Path("/runs/x")), config_with()) == []

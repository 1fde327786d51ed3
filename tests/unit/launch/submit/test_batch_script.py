"""Batch scripts as texts: a change of the launcher is a readable diff of ``golden/*.sbatch``.

``MGPT4_UPDATE_GOLDEN=1 pytest tests/unit/launch/submit/test_batch_script.py`` writes them anew.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.launch.submit.batch_script import join_dependencies
from mgpt4_hpc.run_dir import RunDir
from tests.support.scripts import CASES, script_of

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def _no_slurm_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A script names the folder of this machine's scontrol, if it is an unusual one."""
    monkeypatch.setenv("PATH", "/usr/bin:/bin")


@pytest.mark.parametrize("case", CASES)
def test_the_script_is_the_golden_one(case: str) -> None:
    script = script_of(case) + "\n"
    golden = GOLDEN / f"{case}.sbatch"
    if os.environ.get("MGPT4_UPDATE_GOLDEN"):
        golden.write_text(script)
    assert script == golden.read_text()


def test_an_or_does_not_take_a_chains_own_dependency_away() -> None:
    assert join_dependencies("afterok:17", "afterany:3,singleton") == (
        "afterok:17,afterany:3,singleton"
    )
    assert join_dependencies(None, "afterok:3?afterok:4") == "afterok:3?afterok:4"
    with pytest.raises(ConfigError, match="cannot be joined"):
        join_dependencies("afterok:17", "afterok:3?afterok:4")


@pytest.mark.parametrize("case", CASES)
def test_the_shell_can_read_it(case: str) -> None:
    done = subprocess.run(["bash", "-n"], input=script_of(case), text=True, capture_output=True)
    assert done.returncode == 0 and not done.stderr, done.stderr


def test_no_golden_file_tells_of_this_machine() -> None:
    assert {path.stem for path in GOLDEN.glob("*.sbatch")} == set(CASES)
    for path in GOLDEN.glob("*.sbatch"):
        text = path.read_text().replace("/opt/my env/bin/activate", "")
        text = text.replace("/images/my image.sif", "").replace("/models:/models:ro", "")
        assert sys.prefix not in text
        absolute = re.findall(r"(?<![\w)])/[\w.-]+/[\w.-]+", text)
        known = {"/scratch/runs", "/bin/bash", "/bin/sh", "/dev/null", "/etc/profile.d", "/tmp/x"}
        assert set(absolute) <= known


# -- what the lines do -------------------------------------------------------------------------


def execute(
    script: str, tmp_path: Path, srun: str, python: str = "exit 75"
) -> tuple[int, list[str]]:
    """Run a script with a fake srun, scontrol and Python; its exit code and what they were told."""
    folder = tmp_path / "bin"
    folder.mkdir()
    calls = tmp_path / "calls"
    for name, body in {
        "srun": srun,
        "scontrol": 'echo "NodeName=$4 Arch=x NodeAddr=10.0.0.7 NodeHostName=h"',
        "PYTHON": python,
    }.items():
        script_file = folder / name
        script_file.write_text(
            f'#!/bin/bash\necho "{name} $MGPT4_MASTER_ADDR $*" >> {calls}\n{body}\n'
        )
        script_file.chmod(0o755)
    environ = {"PATH": f"{folder}:/usr/bin:/bin", "SLURMD_NODENAME": "node3", "HOME": "/nowhere"}
    done = subprocess.run(["bash"], input=script, text=True, env=environ, capture_output=True)
    return done.returncode, calls.read_text().splitlines()


@pytest.mark.parametrize(("srun", "code"), [("exit 0", 0), ("exit 143", 143), ("kill -9 $$", 137)])
def test_the_supervisor_learns_how_srun_ended_and_has_the_last_word(
    tmp_path: Path, srun: str, code: int
) -> None:
    script = script_of("setup-lines").replace("module load", "true").replace("source ", "true ")
    ended, calls = execute(script, tmp_path, srun)
    assert ended == 75
    assert calls[0] == "PYTHON  -m mgpt4_hpc.launch.job.start_check /scratch/runs/my-run"
    assert calls[1].startswith("scontrol  show node -o node3")
    assert calls[2].startswith("srun 10.0.0.7 --unbuffered")
    assert "--kill-on-bad-exit=1 --export=ALL --cpus-per-task=8" in calls[2]
    assert calls[3] == (
        f"PYTHON 10.0.0.7 -m mgpt4_hpc.launch.supervise /scratch/runs/my-run --exit-code {code}"
    )


def test_slurms_commands_are_found_whatever_setup_made_of_the_path(tmp_path: Path) -> None:
    script = script_of("one-gpu").replace("\nset +e\n", "\nPATH=/nowhere\nset +e\n")
    assert "PATH=/nowhere" in script
    _, calls = execute(script, tmp_path, "exit 1")
    assert calls[1].startswith("scontrol  show node") and calls[2].startswith("srun 10.0.0.7")


def test_slurms_commands_are_found_where_the_jobs_own_path_never_had_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with sbatch --export=NONE: the submission's scontrol is the fallback."""
    slurm = tmp_path / "it's slurm" / "bin"
    slurm.mkdir(parents=True)
    (slurm / "scontrol").write_text("#!/bin/bash\necho NodeAddr=10.0.0.9\n")
    (slurm / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{slurm}:/usr/bin:/bin")
    lines = script_of("one-gpu").splitlines()
    first = next(n for n, line in enumerate(lines) if line.startswith("submitted_path="))
    last = next(n for n, line in enumerate(lines) if line.startswith("command -v scontrol"))
    script = "\n".join(["PATH=/nowhere", *lines[first : last + 1], "command -v scontrol"])
    done = subprocess.run(["/bin/bash"], input=script, text=True, capture_output=True)
    assert done.stdout == f"{slurm}/scontrol\n"


def test_a_start_of_a_run_that_is_over_ends_before_srun(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    script = script_of("one-gpu", str(runs)).replace("exec PYTHON", "exec false")
    ended, calls = execute(script, tmp_path, "exit 1", python="echo 70")
    assert ended == 70
    assert calls == [f"PYTHON  -m mgpt4_hpc.launch.job.start_check {runs}/my-run"]


def test_the_supervisor_finds_no_markers_of_an_earlier_start(tmp_path: Path) -> None:
    runs = tmp_path / "it's mine"
    run = RunDir(runs / "my-run")
    run.create({"name": "my-run"})
    for marker in (run.failed, run.resubmit_needed):
        marker.write_text("of an earlier start")
    seen = tmp_path / "seen"
    execute(script_of("one-gpu", str(runs)), tmp_path, f'ls "{run.path}" > {seen}; exit 1')
    left = seen.read_text().split()
    assert "run.json" in left and not {"FAILED", "RESUBMIT_NEEDED"} & set(left)


def test_nothing_that_a_user_wrote_is_executed(tmp_path: Path) -> None:
    ended, calls = execute(script_of("odd-names"), tmp_path, "exit 1")
    assert ended == 75
    assert "supervise /scratch/runs/it's a 'run' $(id) --exit-code 1" in calls[3]

"""The code that travels inside a run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.submit import code_snapshot


def test_the_package_travels_without_data(tmp_path: Path) -> None:
    digest = code_snapshot.take_snapshot(tmp_path / "code")
    copy = tmp_path / "code" / "mgpt4_hpc"
    assert digest == code_snapshot.code_digest() == code_snapshot.code_digest(copy)
    names = {path.name for path in copy.rglob("*")}
    assert "task.py" in names
    assert not names & {"toy_world", "_configs", "_slurm"}
    assert sum(path.stat().st_size for path in copy.rglob("*.py")) < 5e6


def test_a_job_runs_the_snapshot_and_not_the_checkout_beside_it(tmp_path: Path) -> None:
    code_snapshot.take_snapshot(tmp_path / "code")
    repo = Path(code_snapshot.__file__).parents[3]
    told = subprocess.run(
        [sys.executable, "-c", "import mgpt4_hpc.errors as e; print(e.__file__)"],
        cwd=repo,
        env={"PYTHONPATH": str(tmp_path / "code"), "PYTHONSAFEPATH": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.startswith(str(tmp_path / "code"))


@pytest.mark.parametrize("change", ["content", "name", "new"])
def test_the_digest_sees_every_change(tmp_path: Path, change: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.py").write_text("1")
    before = code_snapshot.code_digest(tmp_path)
    (tmp_path / "a" / "notes.txt").write_text("no code")
    assert code_snapshot.code_digest(tmp_path) == before
    if change == "content":
        (tmp_path / "a" / "x.py").write_text("2")
    elif change == "name":
        (tmp_path / "a" / "x.py").rename(tmp_path / "x.py")
    else:
        (tmp_path / "y.py").write_text("")
    assert code_snapshot.code_digest(tmp_path) != before


def test_a_copy_that_fails_says_where(tmp_path: Path) -> None:
    (tmp_path / "code").write_text("a file in the way")
    with pytest.raises(MgptError, match="could not be copied"):
        code_snapshot.take_snapshot(tmp_path / "code")

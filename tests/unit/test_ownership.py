"""Whose files may be executed: the same answer from Python and from the batch script's shell."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mgpt4_hpc.errors import UnsafeRun
from mgpt4_hpc.ownership import assert_owned, shell_check

STRANGER = 54321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as submission makes it, in a path that a shell could take amiss."""
    made = tmp_path / "it's $(a) run"
    made.mkdir(mode=0o700)
    (made / "slurm").mkdir()
    (made / "slurm" / "1_submitted.pkl").write_bytes(b"x")
    (made / "config.yaml").write_text("")
    return made


def refused_by_python(run: Path) -> str:
    try:
        assert_owned(run)
    except UnsafeRun as error:
        return str(error)
    return ""


def refused_by_shell(run: Path) -> str:
    script = "\n".join([*shell_check(shlex.quote(str(run))), "echo went on"])
    done = subprocess.run(["bash"], input=script, text=True, capture_output=True, cwd="/")
    assert not done.stderr, done.stderr
    assert (done.returncode == 70) == ("went on" not in done.stdout)
    return "" if done.returncode == 0 else done.stdout


def wide_open(run: Path) -> None:
    run.chmod(0o777)


def groups(run: Path) -> None:
    run.chmod(0o770)


def reachable_and_writable(run: Path) -> None:
    run.chmod(0o755)
    (run / "slurm" / "1_submitted.pkl").chmod(0o666)


def strangers_pickle(run: Path) -> None:
    os.chown(run / "slurm" / "1_submitted.pkl", STRANGER, STRANGER)


def strangers_folder(run: Path) -> None:
    os.chown(run / "slurm", STRANGER, STRANGER)


def strangers_run(run: Path) -> None:
    os.chown(run, STRANGER, STRANGER)


def untouched(run: Path) -> None:
    pass


def umask_002(run: Path) -> None:
    (run / "config.yaml").chmod(0o664)  # nobody gets there: the folder is 0700


def shared_for_reading(run: Path) -> None:
    run.chmod(0o755)


@pytest.mark.parametrize("change", [untouched, umask_002, shared_for_reading])
def test_what_is_ours_alone_is_trusted(run: Path, change: Callable[[Path], None]) -> None:
    change(run)
    assert refused_by_python(run) == ""
    assert refused_by_shell(run) == ""


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (wide_open, "run"),
        (groups, "run"),
        (reachable_and_writable, "1_submitted.pkl"),
        pytest.param(strangers_pickle, "1_submitted.pkl", marks=needs_root),
        pytest.param(strangers_folder, "slurm", marks=needs_root),
        pytest.param(strangers_run, "run", marks=needs_root),
    ],
)
def test_what_others_own_or_write_is_refused_by_name(
    run: Path, change: Callable[[Path], None], named: str
) -> None:
    change(run)
    assert named in refused_by_python(run)
    assert named in refused_by_shell(run)


def test_files_that_come_and_go_meanwhile_are_nobody_elses(run: Path) -> None:
    """As a submission's temporary files do while its job starts."""
    script = "import os\nwhile True: open('.a', 'w').close(); os.replace('.a', 'b')"
    churn = subprocess.Popen([sys.executable, "-c", script], cwd=run / "slurm")
    try:
        for _ in range(40):
            assert refused_by_shell(run) == ""
        for _ in range(400):
            assert refused_by_python(run) == ""
    finally:
        churn.kill()
        churn.wait()


@needs_root
def test_a_user_is_as_strict_as_root_and_roots_files_are_tolerated(run: Path) -> None:
    for path in [run, *run.rglob("*")]:
        os.chown(path, STRANGER, STRANGER)
    assert_owned(run, user=STRANGER)
    os.chown(run / "config.yaml", 0, 0)
    assert_owned(run, user=STRANGER)
    os.chown(run / "config.yaml", STRANGER + 1, 0)
    with pytest.raises(UnsafeRun, match=f"config.yaml belongs to user {STRANGER + 1}"):
        assert_owned(run, user=STRANGER)


def test_a_link_to_what_anybody_may_write_is_refused(run: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (run / "code").symlink_to(outside)
    (run / "dangling").symlink_to(tmp_path / "nowhere")
    assert_owned(run)
    outside.chmod(0o777)
    with pytest.raises(UnsafeRun, match="leads to what anybody may write"):
        assert_owned(run)


def test_a_folder_above_that_anybody_may_rename_things_in_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    run = shared / "lab" / "run"
    run.mkdir(parents=True, mode=0o700)
    shared.chmod(0o1777)  # as /tmp
    assert_owned(run)
    shared.chmod(0o777)
    with pytest.raises(UnsafeRun, match=f"anybody may rename things in {shared}"):
        assert_owned(run)

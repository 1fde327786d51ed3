"""The task starts with the stop signals blocked, wherever its Python lies and whatever `env` is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.launch.job.launcher_script import write_shim
from mgpt4_hpc.launch.submit.container import write_launcher
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.stop_signals import STOP_SIGNALS

REPORT = (
    "import json, os, signal, sys; "
    "print(json.dumps([sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])), os.getpid(), "
    "sys.argv[1:], [signal.getsignal(n) is signal.SIG_IGN for n in (10, 12, 15)]]))"
)
BLOCKED = sorted(signal.Signals[f"SIG{name}"] for name in STOP_SIGNALS)


def run_shim(shim: Path, *arguments: str, **environ: str) -> tuple[list, int]:
    process = subprocess.Popen(
        [str(shim), "-c", REPORT, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    return json.loads(out), process.pid


@pytest.fixture
def old_env(tmp_path: Path) -> str:
    """A PATH whose `env` knows no --block-signal, as coreutils before 8.31."""
    folder = tmp_path / "old"
    folder.mkdir()
    script = folder / "env"
    script.write_text(
        '#!/bin/sh\ncase "$1" in --*) echo "unrecognized option" >&2; exit 125;; esac\n'
        'exec /usr/bin/env "$@"\n'
    )
    script.chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_signals_are_blocked_and_not_ignored(tmp_path: Path) -> None:
    (mask, _, _, ignored), _ = run_shim(write_shim(tmp_path / "python"))
    assert mask == BLOCKED and ignored == [False] * 3


@pytest.mark.parametrize("runtime", ["none", "pyxis"])
@pytest.mark.parametrize("asked", [False, True])
def test_a_task_writes_byte_code_unless_launch_env_forbids_it(
    tmp_path: Path, runtime: str, asked: bool
) -> None:
    run = RunDir(tmp_path / "one")
    run.create({})
    image = {} if runtime == "none" else {"image": "x.sqsh", "python": sys.executable}
    settings = {f"container.{key}": value for key, value in ({"runtime": runtime} | image).items()}
    if asked:
        settings["launch.env.PYTHONDONTWRITEBYTECODE"] = "1"
    write_launcher(run, load_config("toy-stage1", overrides=settings).config)
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(run.slurm / "python"), "-c", "import sys; print(sys.dont_write_bytecode)"]
    assert subprocess.check_output(command, text=True, env=environ) == f"{asked}\n"


def test_so_they_are_where_env_cannot_do_it(tmp_path: Path, old_env: str) -> None:
    (mask, _, arguments, ignored), _ = run_shim(
        write_shim(tmp_path / "python"), "a b", PATH=old_env
    )
    assert mask == BLOCKED and ignored == [False] * 3
    assert arguments == ["a b"]


def test_no_wrapper_stays_between_slurm_and_the_task(tmp_path: Path, old_env: str) -> None:
    # With proctrack/cgroup only the direct child is signalled.
    shim = write_shim(tmp_path / "python")
    for path in (os.environ["PATH"], old_env):
        (_, pid, _, _), started = run_shim(shim, PATH=path)
        assert pid == started


@pytest.mark.parametrize("modern", [True, False])
def test_any_path_will_do(tmp_path: Path, old_env: str, modern: bool) -> None:
    folder = tmp_path / "my 'lab' $HOME \"x\" `y` \\z"
    folder.mkdir()
    python = folder / "python 3"
    python.symlink_to(sys.executable)
    shim = write_shim(folder / "the shim", str(python))
    path = os.environ["PATH"] if modern else old_env
    (mask, _, arguments, _), _ = run_shim(shim, "$x", "a'b", 'c"d', "", PATH=path)
    assert mask == BLOCKED
    assert arguments == ["$x", "a'b", 'c"d', ""]


def test_it_is_the_owners_alone(tmp_path: Path) -> None:
    assert write_shim(tmp_path / "python").stat().st_mode & 0o777 == 0o700


def test_it_needs_no_right_to_be_executed(tmp_path: Path) -> None:
    # Scratch is often mounted noexec: the batch script starts it through /bin/sh.
    shim = write_shim(tmp_path / "python")
    shim.chmod(0o600)
    done = subprocess.run(["/bin/sh", str(shim), "-c", REPORT], capture_output=True, check=True)
    assert json.loads(done.stdout)[0] == BLOCKED


def test_an_environment_that_moved_is_told_with_the_way_on(tmp_path: Path) -> None:
    shim = write_shim(tmp_path / "shim", str(tmp_path / "my $(env)" / "bin" / "python"))
    done = subprocess.run(["/bin/sh", str(shim)], capture_output=True, text=True)
    assert done.returncode == 127
    assert "my $(env)/bin/python, with which this run was submitted, is not there" in done.stdout
    assert "mgpt4 resume RUN" in done.stdout

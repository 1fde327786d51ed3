"""The environment on a node's disk: whole or not used, whatever ends the unpacking."""

from __future__ import annotations

import copy
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.job import staged_environment
from mgpt4_hpc.launch.job.launcher_script import write_shim
from mgpt4_hpc.launch.job.staged_environment import (
    PACK_VARIABLE,
    environment_trees,
    pack_environment,
)
from tests.support.runs import patience

REPORT = "import sys, probe; print(sys.prefix, sys.base_prefix, probe.__file__, probe.VALUE)"


class Node:
    """A small venv, its pack, and a folder that stands for a node's disk."""

    def __init__(self, folder: Path) -> None:
        self.environment = folder / "shared env"
        self.runs = folder / "runs"
        self.disk = folder / "node disk"
        make = [sys.executable, "-m", "venv", "--without-pip", str(self.environment)]
        subprocess.run(make, check=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        self.module = self.environment / "lib" / version / "site-packages" / "probe.py"
        self.module.write_text("VALUE = 1\n")
        self.python = self.environment / "bin" / "python"
        self.pack = self.make_pack()
        self.script = self.shim()

    def make_pack(self) -> Path:
        trees = environment_trees(self.environment, Path(sys.base_prefix))
        return pack_environment(self.runs, trees)

    def shim(self) -> Path:
        shim = self.runs / "python"
        # The pack's Python is named relative to this process's prefix.
        text = write_shim(shim, str(self.python), stage_env="$NODE").read_text()
        program = shlex.quote("environment/bin/python")
        shim.write_text(
            "".join(
                f"program={program}\n" if line.startswith("program=") else line
                for line in text.splitlines(keepends=True)
            )
        )
        return shim

    def environ(self, **more: str) -> dict[str, str]:
        given = {"NODE": str(self.disk), PACK_VARIABLE: str(self.pack), "SLURM_JOB_ID": "1"}
        return {**os.environ, **given, **more}

    def start(self, **more: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["/bin/sh", str(self.script), "-c", REPORT],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environ(**more),
            start_new_session=True,
        )

    def run(self, **more: str) -> tuple[str, str]:
        process = self.start(**more)
        out, log = process.communicate(timeout=60 * patience())
        assert process.returncode == 0, log
        return out, log


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Node:
    return Node(tmp_path_factory.mktemp("cluster"))


@pytest.fixture
def node(packed: Node, tmp_path: Path) -> Node:
    """The packed environment, and a node that has nothing of it."""
    node = copy.copy(packed)
    node.disk = tmp_path / "node disk"
    node.disk.mkdir()
    return node


def test_ranks_of_a_node_use_one_copy_and_the_next_start_finds_it(node: Node) -> None:
    ranks = [node.start() for _ in range(3)]
    results = [rank.communicate(timeout=60 * patience()) for rank in ranks]
    assert len({out for out, _ in results}) == 1
    # The Python beneath the venv comes along.
    assert (
        results[0][0].count(str(node.disk)) == (2 if sys.base_prefix == "/usr" else 3)
        and str(node.environment) not in results[0][0]
    )
    assert sum("unpacked in" in log for _, log in results) == 1
    out, log = node.run(SLURM_RESTART_COUNT="1")
    assert out == results[0][0] and "from an earlier start" in log


def test_a_changed_environment_has_another_pack(node: Node) -> None:
    node.run()
    old = node.pack
    node.module.write_text("VALUE = 22\n")
    node.pack = node.make_pack()
    assert node.pack != old
    out, _ = node.run()
    assert out.endswith(" 22\n")
    assert len([path for path in (next(node.disk.iterdir())).iterdir() if path.is_dir()]) == 1


def test_a_job_finds_the_pack_until_the_environment_changes(node: Node) -> None:
    node.pack = node.make_pack()
    module = "mgpt4_hpc.launch.job.staged_environment"
    command = [node.python, "-m", module, node.runs / "run"]
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stdout) == (0, f"{node.pack}\n")
    with node.module.open("a") as file:
        file.write("MORE = 1\n")
    done = subprocess.run(command, capture_output=True, text=True, env=environ)
    assert (done.returncode, done.stdout) == (1, "")
    assert "has no pack of" in done.stderr and "using the shared environment" in done.stderr


@pytest.mark.parametrize("damage", ["partial", "no mark", "file lost", "other boot"])
def test_what_is_not_whole_is_unpacked_again(node: Node, damage: str) -> None:
    out, _ = node.run()
    (home,) = node.disk.iterdir()
    folder = home / node.pack.stem
    if damage == "partial":
        folder.rename(home / "partial")
    elif damage == "no mark":
        (folder / "complete").unlink()
    elif damage == "file lost":
        next(folder.rglob("probe.py")).unlink()
    else:
        mark = folder / "complete"
        mark.write_text("another-boot " + mark.read_text().split(" ", 1)[1])
    again, log = node.run(SLURM_JOB_ID="2")
    assert again == out and "unpacked in" in log


def test_a_damaged_copy_in_use_is_neither_removed_nor_used(node: Node) -> None:
    node.run()
    (home,) = node.disk.iterdir()
    folder = home / node.pack.stem
    next(folder.rglob("probe.py")).unlink()
    task = os.open(folder, os.O_RDONLY)
    fcntl.flock(task, fcntl.LOCK_SH)
    try:
        out, log = node.run(SLURM_JOB_ID="2")
        assert out.startswith(f"{node.environment} ") and "in use, and not whole" in log
        assert (folder / "environment" / "bin" / "python").exists()
    finally:
        os.close(task)
    out, log = node.run(SLURM_JOB_ID="3")
    assert str(node.disk) in out and "unpacked in" in log


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_an_interrupted_unpacking_is_never_used(
    node: Node, tmp_path: Path, number: signal.Signals
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    slow = tools / "tar"
    slow.write_text(f'#!/bin/sh\ntouch "$4/half" {tmp_path}/began\nexec sleep 300\n')
    slow.chmod(0o755)
    process = node.start(PATH=f"{tools}:{os.environ['PATH']}")
    deadline = time.monotonic() + 30 * patience()
    while not (tmp_path / "began").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(number)
    code = process.wait(timeout=30 * patience())
    assert code == (75 if number == signal.SIGTERM else -number)
    # A killed shell leaves its tar, which holds the lock; Slurm's KILL ends both.
    if number == signal.SIGKILL:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert "unpacked in" in node.run()[1]


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"NODE": "/nowhere"}, "no folder"),
        ({"NODE": ""}, "no folder"),
        ({PACK_VARIABLE: "/nowhere.tar"}, "not there"),
    ],
)
def test_where_it_cannot_be_staged_the_shared_one_serves(
    node: Node, variables: dict[str, str], reason: str
) -> None:
    out, log = node.run(**variables)
    assert out.startswith(f"{node.environment} ") and reason in log
    assert "using the shared environment" in log


def test_a_full_disk_falls_back(node: Node, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, script in {"df": "echo; echo x 1 1 5 1% /", "tar": "exit 2"}.items():
        fake = tools / name
        fake.write_text(f"#!/bin/sh\n{script}\n")
        fake.chmod(0o755)
    path = f"{tools}:{os.environ['PATH']}"
    out, log = node.run(PATH=path)
    assert out.startswith(f"{node.environment} ") and "KiB free" in log
    (tools / "df").unlink()
    out, log = node.run(PATH=path)
    assert out.startswith(f"{node.environment} ") and "could not be unpacked" in log
    (tools / "tar").unlink()
    fake = tools / "mv"
    for file, reason in {"partial": "could not be unpacked", "complete.new": "no further"}.items():
        fake.write_text(f'#!/bin/sh\ncase $1 in */{file}) exit 1 ;; esac\nexec /bin/mv "$@"\n')
        fake.chmod(0o755)
        out, log = node.run(PATH=path)
        assert out.startswith(f"{node.environment} ") and reason in log
    (home,) = node.disk.iterdir()
    assert not [path for path in home.iterdir() if path.is_dir()]


def test_a_disk_from_which_nothing_may_be_executed_falls_back(node: Node) -> None:
    if os.geteuid():
        pytest.skip("only root can mount a file system")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "noexec", "none", str(node.disk)], check=True)
    try:
        out, log = node.run()
        (home,) = node.disk.iterdir()
        assert not [path for path in home.iterdir() if path.is_dir()]
    finally:
        subprocess.run(["umount", "-l", str(node.disk)], check=True)
    assert out.startswith(f"{node.environment} ") and "does not start" in log


def test_a_folder_of_another_user_is_not_executed(node: Node) -> None:
    if os.geteuid():
        pytest.skip("only root can give a folder to another user")
    home = node.disk / f"mgpt4-env-{os.getuid()}"
    home.mkdir()
    os.chown(home, 1234, -1)
    out, log = node.run()
    assert out.startswith(f"{node.environment} ") and "another user's" in log


def test_packs_that_others_may_exchange_are_refused(node: Node) -> None:
    node.pack.parent.chmod(0o777)
    try:
        with pytest.raises(MgptError, match="others may write"):
            node.make_pack()
    finally:
        node.pack.parent.chmod(0o700)


def test_a_system_python_is_not_packed() -> None:
    with pytest.raises(MgptError, match="each node has"):
        environment_trees(staged_environment._SYSTEM, staged_environment._SYSTEM)

"""Workers through the signals, deaths and hangs that a preemptible job meets."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.errors import DataError, WorkerDied
from tests.unit.data.batching.worker_loaders import a_loader, workers_of
from tests.unit.data.worlds import make_index

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")

CHILD = """
import os, signal, sys
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.reading.reader import SampleReader
from tests.unit.data.batching.worker_loaders import a_loader, workers_of

loader = a_loader(ShardIndex.open(sys.argv[1]))
if sys.argv[2] == "hang":
    def hang(*_):
        while True:
            signal.pause()
    SampleReader.read = hang
    loader.start()
else:
    next(loader)
print(*workers_of(loader), flush=True)
if sys.argv[2] == "wait":
    signal.pause()
"""


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_index(tmp_path_factory.mktemp("workers"), 60)


def run_child(index: ShardIndex, mode: str) -> tuple[subprocess.Popen[str], list[int]]:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(index.path), mode],
        stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[4],
    )  # fmt: skip
    assert child.stdout is not None
    return child, [int(pid) for pid in child.stdout.readline().split()]


def wait_until_gone(pids: list[int], timeout_s: float = 30) -> None:
    for pid in pids:
        try:
            handle = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        ready, _, _ = select.select([handle], [], [], timeout_s)
        os.close(handle)
        assert ready, f"worker {pid} outlived its parent"


@pytest.mark.slow
def test_workers_die_with_a_killed_parent(index: ShardIndex) -> None:
    child, pids = run_child(index, "wait")
    assert len(pids) == 2
    child.kill()
    child.communicate()
    wait_until_gone(pids)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["leave", "hang"])
def test_a_forgotten_close_does_not_keep_the_interpreter(index: ShardIndex, mode: str) -> None:
    child, pids = run_child(index, mode)
    assert len(pids) == 2
    child.communicate(timeout=60)
    assert child.returncode == 0
    wait_until_gone(pids)


@pytest.mark.slow
def test_a_killed_worker_is_an_error_of_the_next_step(index: ShardIndex) -> None:
    with a_loader(index) as loader:
        next(loader)
        os.kill(workers_of(loader)[0], signal.SIGKILL)
        with pytest.raises(WorkerDied, match="a data worker died"):
            for _ in range(20):
                next(loader)


def test_a_closed_loader_says_so(index: ShardIndex) -> None:
    loader = a_loader(index)
    loader.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(loader)


def test_a_fault_in_a_worker_arrives_whole(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DataError("the shelf is empty", fix="fill it")

    monkeypatch.setattr("mgpt4_hpc.data.batching.batch_builder.BatchMaker.__call__", fail)
    with a_loader(index) as loader, pytest.raises(DataError) as error:
        next(loader)
    assert str(error.value) == "the shelf is empty\n  fix: fill it"

"""A forked worker ignores the signals that Slurm sends to the job."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from mgpt4_hpc.data.index.index import ShardIndex
from tests.unit.data.batching.worker_loaders import a_loader, workers_of
from tests.unit.data.worlds import make_index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_index(tmp_path_factory.mktemp("workers"), 60)


def masks(pid: int) -> dict[str, int]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {line[:6]: int(line[8:], 16) for line in lines if line.startswith(("SigBlk", "SigIgn"))}


def test_workers_ignore_what_slurm_sends(index: ShardIndex) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        with a_loader(index) as loader:
            next(loader)  # both workers have been set up
            for pid in workers_of(loader):
                found = masks(pid)
                for number in numbers:
                    assert found["SigIgn"] >> (number - 1) & 1
                    os.kill(pid, number)
                assert found["SigBlk"] == 0
            for _ in range(5):
                next(loader)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)

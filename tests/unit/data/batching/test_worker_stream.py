"""Tests of ``data/batching/worker_stream.py``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.data.index.index import ShardIndex
from tests.unit.data.batching.loaders import a_loader
from tests.unit.data.worlds import make_index

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_index(tmp_path_factory.mktemp("loader"), 300)


def test_close_ends_a_worker_that_hangs(index: ShardIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    parent = os.getpid()

    def hang(*_: object) -> None:
        assert os.getpid() != parent
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
        while True:
            signal.pause()

    monkeypatch.setattr("mgpt4_hpc.data.reading.reader.SampleReader.read", hang)
    loader = a_loader(index, num_workers=2)
    loader.start()
    workers = list(loader._stream._batches._workers)  # type: ignore[union-attr]
    assert all(worker.is_alive() for worker in workers)
    loader.close()
    loader.close()
    assert [worker.exitcode for worker in workers] == [-signal.SIGKILL] * 2


_SMALL_SHM = """
import sys
from pathlib import Path
from mgpt4_hpc.data.batching.loader import LoaderOptions, StepLoader
from mgpt4_hpc.data.sampling.order import SampleOrder, SourceSize
from mgpt4_hpc.errors import WorkerDied
from tests.unit.data.worlds import make_index, text_spec
index = make_index(Path(sys.argv[1]), 64)
order = SampleOrder([SourceSize(index.name, index.num_samples)], seed=3)
options = LoaderOptions(global_batch_size=16, micro_batch_size=16, num_workers=2)
with StepLoader(order, [index], text_spec(), 224, options) as loader:
    try:
        for _ in range(4):
            next(loader)
    except WorkerDied as error:
        print(error)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
def test_a_small_shared_memory_is_an_error_with_the_fix(tmp_path: Path) -> None:
    """A real /dev/shm of 1 MiB; the queue's own thread would fail in silence, for ever."""
    mount = 'mount -t tmpfs -o size=1m none /dev/shm && exec "$@"'
    ours = [sys.executable, "-c", _SMALL_SHM, str(tmp_path)]
    probe = ["unshare", "-m", "sh", "-c", mount, "sh"]
    if subprocess.run([*probe, "true"], capture_output=True).returncode:
        pytest.skip("this sandbox mounts nothing")
    done = subprocess.run(
        [*probe, *ours], capture_output=True, text=True, timeout=240, cwd=Path(__file__).parents[4]
    )
    assert done.returncode == 0, done.stderr
    assert "no shared memory" in done.stdout and "lower data.num_workers" in done.stdout

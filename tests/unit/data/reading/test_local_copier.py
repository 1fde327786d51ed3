"""Copies on the node's disk: within the budget, ahead and not behind, and never trusted."""

from __future__ import annotations

import errno
import signal
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import pytest

from mgpt4_hpc.data.batching.loader import LoaderOptions, StepLoader
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.reading import local_copier
from mgpt4_hpc.data.reading.local_copier import Stager
from mgpt4_hpc.data.reading.local_copies import Staged, Stretch, Stretches
from mgpt4_hpc.data.reading.reader import SampleReader
from tests.unit.data.reading.copier import a_copier, an_order
from tests.unit.data.worlds import text_spec

pytestmark = pytest.mark.usefixtures("small_stretches")


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def test_copies_give_the_same_samples(index: ShardIndex, folder: Path) -> None:
    copier, counts = a_copier(folder, index, 10**9)
    while copier.step(0):
        pass
    staged = Staged(folder, [index])
    plain, reader = SampleReader([index]), SampleReader([index], staged=staged)
    sample_ids = an_order(index).lookup(range(40))[1].tolist()
    assert [reader.read(0, i) for i in sample_ids] == [plain.read(0, i) for i in sample_ids]
    assert staged.num_reads == 40
    assert counts[1] == used(folder)
    assert not reader._open  # no shard was touched


def test_stays_within_the_budget_and_removes_what_is_behind(
    index: ShardIndex, folder: Path
) -> None:
    budget = 4 * Stretches([index]).of(0, 0).num_bytes
    copier, counts = a_copier(folder, index, budget)
    for now in range(0, 500, 5):
        for _ in range(3):
            copier.step(now)
        assert used(folder) <= budget
    assert counts[2] > 20  # removed
    assert counts[3] == 0
    copier.step(10**6)
    assert {path.name[0] for path in folder.iterdir()} <= {"0"}


def test_a_full_disk_and_a_lost_shard_are_survived(
    index: ShardIndex, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, copies = local_copier._copy_range, []

    def full_after_three(index: ShardIndex, stretch: Stretch, target: Path) -> None:
        if len(copies) >= 3:
            target.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "full")
        copies.append(stretch)
        real(index, stretch, target)

    monkeypatch.setattr(local_copier, "_copy_range", full_after_three)
    copier, counts = a_copier(folder, index, 10**9)
    for _ in range(50):
        copier.step(0)
    assert counts[0] == 3
    assert counts[3] >= 1
    assert len(list(folder.iterdir())) == 3  # no half copy
    index.shard_path(0).unlink()
    monkeypatch.setattr(local_copier, "_copy_range", real)
    copier, counts = a_copier(folder, index, 10**9)
    while copier.step(0):
        pass
    assert counts[3] >= 1
    assert counts[0] >= 3


def wait_until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@pytest.mark.slow
def test_a_loader_with_a_stager_reads_the_same(index: ShardIndex, folder: Path) -> None:
    folder.mkdir()
    (folder / "0-0-8").write_bytes(b"left by a killed attempt")
    stager = Stager(folder, an_order(index), [index], 10**9, 0)
    assert list(folder.iterdir()) == []
    stager.start()
    try:
        wait_until(lambda: stager.report.copied >= 5)
        keys = {}
        for name, staged in (("staged", Staged(folder, [index])), ("plain", None)):
            with StepLoader(
                an_order(index),
                [index],
                text_spec(),
                16,
                LoaderOptions(global_batch_size=8, micro_batch_size=8, num_workers=2),
                staged=staged,
            ) as loader:
                read = []
                for _ in range(5):
                    batch = next(loader)[0]
                    read.append((batch.keys, batch.images_NCHW.sum().item()))
                    if staged is not None:
                        stager.advance(loader.position)
                keys[name] = read
            if staged is not None:
                assert staged.num_reads > 0
        assert keys["staged"] == keys["plain"]
        stager.advance(10**6)
        wait_until(lambda: stager.report.removed >= 5)
    finally:
        stager.close()
    stager.close()
    assert not folder.exists()


def test_the_stager_ends_with_its_parent(index: ShardIndex, folder: Path) -> None:
    context = get_context("fork")
    mine, theirs = context.Pipe()

    def trainer() -> None:
        stager = Stager(folder, an_order(index), [index], 10**9, 0)
        stager.start()
        theirs.send(stager._process.pid)
        signal.pause()

    parent = context.Process(target=trainer)
    parent.start()
    pid = mine.recv()
    parent.kill()
    parent.join()
    wait_until(lambda: not is_running(pid))
    assert folder.exists()  # what the next attempt cleans away
    Stager(folder, an_order(index), [index], 10**9, 0).close()
    assert not folder.exists()


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"

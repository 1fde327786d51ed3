import errno
import threading

import pytest
import torch

from mgpt4_hpc.checkpoint.filesystem import FileSystem
from mgpt4_hpc.checkpoint.saver import AsyncSaver
from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.errors import CheckpointError, RunLocked


class Gate(FileSystem):
    """A disk whose fsyncs wait until the test lets them go."""

    def __init__(self):
        self.open = threading.Event()

    def fsync(self, fd):
        assert self.open.wait(60)
        super().fsync(fd)


def files(value):
    return {"projector": {"weight": torch.full((64, 8), float(value))}}


@pytest.fixture
def saver(tmp_path):
    saver = AsyncSaver(CheckpointStore(tmp_path / "checkpoints", keep_last=2))
    yield saver
    saver.close(60)


def test_saves_report_when_they_are_durable(tmp_path):
    told = []
    saver = AsyncSaver(
        CheckpointStore(tmp_path), on_durable=lambda *arguments: told.append(arguments)
    )
    assert saver.last_durable_step is None
    assert saver.save(10, files(10), {"samples_seen": 80})
    assert saver.wait(60)
    assert (saver.last_durable_step, saver.failures) == (10, [])
    assert saver.last_save_s >= saver.last_stall_s >= 0
    [(step, path, seconds)] = told
    assert (step, path, seconds) == (10, tmp_path / "step-00000010", saver.last_save_s)
    assert saver.close(60)


def test_the_state_is_that_of_the_moment_of_the_call(tmp_path):
    disk = Gate()
    saver = AsyncSaver(CheckpointStore(tmp_path, filesystem=disk))
    weight = torch.zeros(1000)
    for step in (1, 2):
        weight.fill_(step)
        saver.save(step, {"projector": {"weight": weight}}, {})
    weight.fill_(99)
    disk.open.set()
    assert saver.close(60)
    store = CheckpointStore(tmp_path)
    assert store.load_newest().files["projector"]["weight"].unique().tolist() == [2]
    store.path_of(2).rename(tmp_path / "aside")
    assert store.load_newest().files["projector"]["weight"].unique().tolist() == [1]


def test_two_saves_fit_and_a_third_waits_or_is_declined(tmp_path):
    disk = Gate()
    saver = AsyncSaver(CheckpointStore(tmp_path, filesystem=disk))
    assert saver.save(1, files(1), {}) and saver.save(2, files(2), {})
    assert saver.save(3, files(3), {}, block=False) is False
    assert saver.wait(0.05) is False
    threading.Timer(0.1, disk.open.set).start()
    assert saver.save(4, files(4), {})
    assert saver.close(60)
    assert saver.store.steps() == [1, 2, 4]


def test_buffers_are_reused_and_replaced_when_shapes_change(saver):
    saver.save(1, files(1), {})
    saver.save(2, files(2), {})
    saver.wait(60)
    kept = {id(slot.buffers["projector"]["weight"]) for slot in saver._free}
    for step in range(3, 6):
        saver.save(step, files(step), {})
        saver.wait(60)
    assert {id(slot.buffers["projector"]["weight"]) for slot in saver._free} == kept
    saver.save(6, {"projector": {"weight": torch.ones(3, dtype=torch.float64)}}, {})
    saver.wait(60)
    assert saver.store.load_newest().files["projector"]["weight"].tolist() == [1, 1, 1]


def test_old_checkpoints_go(saver):
    for step in (1, 2, 3, 4):
        saver.save(step, files(step), {})
        saver.wait(60)
    assert saver.store.steps() == [3, 4]


class Failing(FileSystem):
    def __init__(self):
        self.broken = False

    def write(self, fd, data):
        if self.broken:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().write(fd, data)


def test_a_full_disk_never_reaches_the_loop(tmp_path):
    disk, told = Failing(), []
    saver = AsyncSaver(
        CheckpointStore(tmp_path, filesystem=disk),
        on_failure=lambda step, error: told.append((step, error)),
    )
    saver.save(1, files(1), {})
    saver.wait(60)
    disk.broken = True
    saver.save(2, files(2), {})
    saver.wait(60)
    assert saver.last_durable_step == 1
    assert [failure.step for failure in saver.failures] == [2]
    assert isinstance(saver.failures[0].error, CheckpointError)
    assert told == [(2, saver.failures[0].error)]
    disk.broken = False
    saver.save(3, files(3), {})
    assert saver.close(60)
    assert (saver.last_durable_step, saver.store.steps()) == (3, [1, 3])


def test_a_fenced_save_is_a_failure_that_names_its_reason(tmp_path):
    def guard():
        raise RunLocked("attempt 9 owns the run")

    saver = AsyncSaver(CheckpointStore(tmp_path), guard=guard)
    saver.save(1, files(1), {})
    assert saver.close(60)
    assert isinstance(saver.failures[0].error, RunLocked)
    assert saver.last_durable_step is None


class Lying(FileSystem):
    """Flips a bit on its way to the disk."""

    def write(self, fd, data):
        changed = bytearray(data)
        changed[-1] ^= 1
        super().write(fd, memoryview(changed) if self.lies else data)

    lies = False


def test_a_checkpoint_that_does_not_read_back_is_no_checkpoint_and_prunes_none(tmp_path):
    disk, told = Lying(), []
    saver = AsyncSaver(
        CheckpointStore(tmp_path, keep_last=1, filesystem=disk),
        on_durable=lambda step, path, seconds: told.append(step),
    )
    saver.save(1, files(1), {})
    saver.wait(60)
    disk.lies = True
    saver.save(2, files(2), {})
    saver.close(60)
    assert [failure.step for failure in saver.failures] == [2]
    assert saver.last_durable_step == 1 and told == [1]
    assert saver.store.steps() == [1, 2]
    assert CheckpointStore(tmp_path).load_newest().step == 1


def test_no_memory_for_the_buffers_is_a_failure_like_any_other(saver, monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", refuse)
        for step in (1, 2, 3):
            assert saver.save(step, files(step), {}) is False
    assert [failure.step for failure in saver.failures] == [1, 2, 3]
    assert saver.save(4, files(4), {}) and saver.save(5, files(5), {})
    assert saver.wait(60) and saver.store.steps() == [4, 5]


def test_broken_callbacks_break_nothing(tmp_path):
    def broken(*arguments):
        raise ZeroDivisionError

    saver = AsyncSaver(CheckpointStore(tmp_path), on_durable=broken, on_failure=broken)
    saver.save(1, files(1), {})
    saver.save(2, files(2), {"meta": object()})
    saver.save(3, files(3), {})
    assert saver.close(60)
    assert saver.last_durable_step == 3
    assert [failure.step for failure in saver.failures] == [2]


def test_a_hung_disk_lets_the_caller_go(tmp_path):
    disk = Gate()
    saver = AsyncSaver(CheckpointStore(tmp_path, filesystem=disk))
    saver.save(1, files(1), {})
    assert saver.close(0.05) is False
    with pytest.raises(RuntimeError, match="closed"):
        saver.save(2, files(2), {})
    disk.open.set()
    assert saver.wait(60)

"""Tests of ``checkpoint/reading.py``."""

import errno

import pytest
import torch

from mgpt4_hpc.checkpoint import reading
from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.errors import StorageTrouble


def state(step):
    return {
        "projector": {"weight": torch.full((4, 3), float(step)), "bias": torch.arange(4.0)},
        "optimizer": {"exp_avg.weight": torch.full((4, 3), -float(step))},
    }


def commit(store, *steps):
    for step in steps:
        store.commit(step, state(step), {"samples_seen": step * 8, "attempt": 1})


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", attempt=3)


def flip(path, at=-1):
    data = bytearray(path.read_bytes())
    data[at] ^= 0x10
    path.write_bytes(data)


def damage_bit(path):
    flip(path / "optimizer.safetensors")


def fail_reading(monkeypatch, folder_name, error):
    read = reading._read_file

    def failing(path, *arguments, **options):
        if path.parent.name == folder_name:
            raise error
        return read(path, *arguments, **options)

    monkeypatch.setattr(reading, "_read_file", failing)


EIO = OSError(errno.EIO, "Input/output error")


def patient_store(folder, slept):
    return CheckpointStore(folder, attempt=3, sleep=slept.append)


def test_an_outage_while_checkpoints_are_read_loses_none(store, monkeypatch):
    """A file server that is away for some seconds, just when a requeued run looks for them."""
    commit(store, 1, 2, 3)
    read, slept = reading._read_file, []

    def failing(*arguments, **options):
        if sum(slept) < 2:
            raise EIO
        return read(*arguments, **options)

    monkeypatch.setattr(reading, "_read_file", failing)
    assert patient_store(store.folder, slept).load_newest().step == 3
    assert store.steps() == [1, 2, 3]


def test_a_lasting_outage_does_not_begin_the_run_anew(store, monkeypatch):
    commit(store, 1, 2, 3)
    damage_bit(store.path_of(1))
    slept = []
    with monkeypatch.context() as patch:
        for step in (2, 3):
            fail_reading(patch, store.path_of(step).name, EIO)
        with pytest.raises(StorageTrouble, match=r"no checkpoint .* can be read") as caught:
            patient_store(store.folder, slept).load_newest()
    assert not caught.value.will_repeat
    assert sum(slept) == 30, "once for all of them: a watchdog waits"
    assert store.load_newest().step == 3

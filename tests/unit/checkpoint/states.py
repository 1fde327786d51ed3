"""States and stores of the tests."""

import errno

import torch

from mgpt4_hpc.checkpoint import reading
from mgpt4_hpc.checkpoint.store import CheckpointStore


def state(step):
    return {
        "projector": {"weight": torch.full((4, 3), float(step)), "bias": torch.arange(4.0)},
        "optimizer": {"exp_avg.weight": torch.full((4, 3), -float(step))},
    }


def commit(store, *steps):
    for step in steps:
        store.commit(step, state(step), {"samples_seen": step * 8, "attempt": 1})


def names(store):
    return sorted(path.name for path in store.folder.iterdir())


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

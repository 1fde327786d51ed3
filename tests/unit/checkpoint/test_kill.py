"""kill -9 of a real process that saves without a pause, at random moments."""

import os
import random
import signal
import sys
import time

import pytest
import torch

from mgpt4_hpc.checkpoint.saver import AsyncSaver
from mgpt4_hpc.checkpoint.store import CheckpointStore

NUMEL = 100_000


def files(step):
    return {
        "projector": {"weight": torch.full((NUMEL,), float(step))},
        "optimizer": {"exp_avg": torch.full((NUMEL,), -float(step))},
    }


def save_for_ever(folder, pipe):
    """An attempt: resume, then save after each step; tell the pipe what is durable."""
    torch.set_num_threads(1)  # the parent's worker threads did not survive the fork
    store = CheckpointStore(folder, keep_last=2)
    store.clean_stale()
    checkpoint = store.load_newest()
    saver = AsyncSaver(store, on_durable=lambda step, *_: os.write(pipe, f"{step}\n".encode()))
    step = checkpoint.step if checkpoint else 0
    while True:
        step += 1
        saver.save(step, files(step), {"samples_seen": step * 8})


def run_and_kill(folder, seconds):
    """Kill an attempt `seconds` after its first durable save; the newest step it reported."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            save_for_ever(folder, writer)
        finally:
            os._exit(1)
    os.close(writer)
    with os.fdopen(reader, "rb", buffering=0) as stream:
        told = stream.read(1)
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        while more := stream.read(1 << 16):
            told += more
    assert os.WTERMSIG(status) == signal.SIGKILL
    return int(told.split()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("times", [5, pytest.param(50, marks=pytest.mark.soak)])
def test_killed_at_random_moments(tmp_path, times):
    seed = random.randrange(1 << 32)
    print(f"seed {seed}", file=sys.stderr)
    moments = random.Random(seed)
    damaged = []
    for _ in range(times):
        durable = run_and_kill(tmp_path, moments.uniform(0, 0.4))
        store = CheckpointStore(tmp_path)
        loaded = store.load_newest(lambda path, reason: damaged.append((path, reason)))
        assert loaded.step >= durable
        assert loaded.meta == {"samples_seen": loaded.step * 8}
        for entry, tensors in files(loaded.step).items():
            for name, tensor in tensors.items():
                assert torch.equal(loaded.files[entry][name], tensor)
    assert damaged == []

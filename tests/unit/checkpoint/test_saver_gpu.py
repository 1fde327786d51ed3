import time

import pytest
import torch

from mgpt4_hpc.checkpoint.saver import AsyncSaver
from mgpt4_hpc.checkpoint.store import CheckpointStore

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


def keep_busy(seconds):
    """Queue work on the GPU for about so long, and return at once."""
    torch.cuda._sleep(int(seconds * 1.5e9))


def test_the_state_is_that_of_the_moment_of_the_call_though_nobody_waits(tmp_path):
    saver = AsyncSaver(CheckpointStore(tmp_path, keep_last=10))
    weight = torch.zeros(3_000_000, device="cuda")
    files = {"projector": {"weight": weight, "step": torch.tensor(1.0)}}
    saver.save(0, files, {})  # allocates the buffers, which takes time
    saver.wait(30)
    for step in range(1, 6):
        keep_busy(0.3)
        weight.fill_(step)
        started = time.monotonic()
        assert saver.save(step, files, {})
        assert time.monotonic() - started < 0.1, "the loop waited for the GPU"
        weight.fill_(-1)
        saver.wait(30)
    assert saver.close(30) and saver.failures == []
    for step in range(5, 0, -1):
        store = CheckpointStore(tmp_path)
        loaded = store.load_newest()
        assert loaded.step == step
        assert loaded.files["projector"]["weight"].unique().tolist() == [step]
        store.path_of(step).rename(tmp_path / f"seen-{step}")


def test_buffers_are_pinned(tmp_path):
    saver = AsyncSaver(CheckpointStore(tmp_path))
    assert saver.save(1, {"projector": {"weight": torch.zeros(10, device="cuda")}}, {})
    assert saver.close(30)
    assert any(slot.buffers for slot in saver._free)
    for slot in saver._free:
        assert all(b.is_pinned() for tensors in slot.buffers.values() for b in tensors.values())

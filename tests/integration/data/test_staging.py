"""Two ranks that read from copies on their node end with the bits of two that read the shards."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.run_dir import RunDir
from tests.support.runs import ForkedRanks, final_projector, last_step, records, wait_until
from tests.support.tiny_world import TinyWorld


@pytest.fixture
def ranks() -> Iterator[ForkedRanks]:
    forked = ForkedRanks()
    yield forked
    forked.close()


def make_run(world: TinyWorld, path: Path, **changes: object) -> Path:
    settings = {"train__max_steps": 48, "train__global_batch_size": 8, "launch__gpus": 2, **changes}
    file = world.write_config(path.with_suffix(".yaml"), **settings)
    run = RunDir(path)
    run.create({"name": path.name, "stage": 1})
    write_config(run.config_file, load_config(file))
    return path


def test_reading_from_copies_changes_nothing(
    ranks: ForkedRanks, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    plain = make_run(tiny_world, tmp_path / "plain")
    ranks.start(plain, 2)
    assert ranks.wait() == [0, 0]
    staged = make_run(tiny_world, tmp_path / "staged", data__stage_to=str(disk))
    pids = ranks.start(staged, 2)
    wait_until(lambda: last_step(staged) >= 2, 60, "step 2")
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    assert ranks.wait() == [-signal.SIGKILL] * 2
    left = list(disk.iterdir())
    assert len(left) == 1
    (left[0] / "0-0-9999").write_bytes(b"left by a killed attempt")
    ranks.start(staged, 2)
    assert ranks.wait() == [0, 0]
    assert final_projector(staged) == final_projector(plain)
    assert list(disk.iterdir()) == []
    (told,) = [record for record in records(staged) if record["kind"] == "staging"]
    assert told["copied"] > 0 and told["failed"] == 0 and told["samples_read"] > 0

"""Tests of ``telemetry/event_file.py``."""

import os
import subprocess
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mgpt4_hpc.telemetry import event_file, tags
from mgpt4_hpc.telemetry.tensorboard import TensorBoardWriter
from tests.support.runs import wait_until


def curve(folder, tag):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def test_points_appear_within_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(event_file, "FLUSH_S", 0.05)
    writer = TensorBoardWriter(tmp_path)
    [path] = tmp_path.iterdir()
    before = path.stat().st_size
    writer.scalars(1, {tags.TRAIN_LOSS: 1.0})
    wait_until(lambda: path.stat().st_size > before, 30, "the point is written")
    writer.close()


def test_a_refusing_disk_is_survived_and_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(event_file, "REOPEN_S", 0.0)
    folder = tmp_path / "tensorboard"
    folder.write_text("a file where the folder should be")
    writer = TensorBoardWriter(folder, purge_step=5)
    writer.scalars(5, {tags.TRAIN_LOSS: 1.0})
    folder.unlink()
    writer.scalars(6, {tags.TRAIN_LOSS: 2.0})
    writer.close()
    assert curve(folder, tags.TRAIN_LOSS) == [(5, 1.0), (6, 2.0)]


def test_a_long_refusal_costs_the_oldest_points(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(event_file, "_MOST", 5)
    folder = tmp_path / "tensorboard"
    folder.write_text("a file where the folder should be")
    writer = TensorBoardWriter(folder)
    for step in range(1, 9):
        writer.scalars(step, {tags.TRAIN_LOSS: 1.0})
    folder.unlink()
    writer.close()
    assert [step for step, _ in curve(folder, tags.TRAIN_LOSS)] == [4, 5, 6, 7, 8]
    assert "written again; 3 were lost" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_really_full_disk(tmp_path, monkeypatch):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    monkeypatch.setattr(event_file, "FLUSH_S", 0.01)
    monkeypatch.setattr(event_file, "REOPEN_S", 0.2)
    try:
        writer = TensorBoardWriter(tmp_path)
        ballast = tmp_path / "ballast"
        with pytest.raises(OSError), ballast.open("wb", buffering=0) as stream:
            while stream.write(b"x" * 4096):
                pass
        for step in range(1, 301):
            writer.scalars(step, {tags.TRAIN_LOSS: 1.0, tags.TRAIN_LR: 1.0, tags.STEP_S: 1.0})
            time.sleep(0.001)
        ballast.unlink()
        for step in range(301, 311):
            writer.scalars(step, {tags.TRAIN_LOSS: 1.0})
        writer.close()
        steps = [step for step, _ in curve(tmp_path, tags.TRAIN_LOSS)]
        assert steps == list(range(1, 311))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mgpt4_hpc.telemetry import tags
from mgpt4_hpc.telemetry.tensorboard import TensorBoardWriter


def curve(folder, tag):
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 0})
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


@pytest.mark.slow
def test_a_requeued_run_draws_every_step_once(tmp_path):
    """Three attempts; each is killed some steps past its last checkpoint and replays them."""
    restored = 0
    for attempt, (start, stop) in enumerate([(0, 57), (50, 83), (80, 100)], 1):
        writer = TensorBoardWriter(tmp_path, purge_step=start + 1 if attempt > 1 else None)
        writer.attempt(start + 1, attempt)
        for step in range(start + 1, stop + 1):
            loss = step + attempt / 10
            writer.scalars(step, {tags.TRAIN_LOSS: loss, tags.ATTEMPT: attempt})
            if step % 10 == 0:
                writer.scalars(step, {tags.VAL_LOSS: float(step)})
        writer.close()
        restored = start
    assert restored == 80
    loss = curve(tmp_path, tags.TRAIN_LOSS)
    assert [step for step, _ in loss] == list(range(1, 101))
    by_attempt = [round((value - step) * 10) for step, value in loss]
    assert by_attempt == [1] * 50 + [2] * 30 + [3] * 20
    assert [step for step, _ in curve(tmp_path, tags.VAL_LOSS)] == list(range(10, 101, 10))
    assert [value for _, value in curve(tmp_path, tags.ATTEMPT)] == by_attempt


@pytest.mark.slow
def test_an_attempt_killed_at_once_leaves_the_curve_whole(tmp_path):
    for attempt, purge_step in enumerate([None, 6, 6, 6], 1):
        writer = TensorBoardWriter(tmp_path, purge_step)
        for step in range(purge_step or 1, 8):
            writer.scalars(step, {tags.TRAIN_LOSS: attempt})
        writer.close()
    loss = curve(tmp_path, tags.TRAIN_LOSS)
    assert loss == [(1, 1), (2, 1), (3, 1), (4, 1), (5, 1), (6, 4), (7, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("torn", [1, 20])
def test_a_kill_in_the_middle_of_a_record_hides_nothing_later(tmp_path, torn):
    writer = TensorBoardWriter(tmp_path)
    for step in (1, 2, 3):
        writer.scalars(step, {tags.TRAIN_LOSS: 1.0})
    writer.close()
    [path] = tmp_path.iterdir()
    os.truncate(path, path.stat().st_size - torn)
    writer = TensorBoardWriter(tmp_path, purge_step=2)
    for step in (2, 3):
        writer.scalars(step, {tags.TRAIN_LOSS: 2.0})
    writer.close()
    assert curve(tmp_path, tags.TRAIN_LOSS) == [(1, 1.0), (2, 2.0), (3, 2.0)]


def test_text_is_shown(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    writer.text(3, tags.EVENTS, "SIGUSR2 on node n1")
    writer.close()
    accumulator = EventAccumulator(str(tmp_path))
    accumulator.Reload()
    [event] = accumulator.Tensors(tags.EVENTS)
    assert (event.step, event.tensor_proto.string_val[0]) == (3, b"SIGUSR2 on node n1")
    plugins = accumulator.PluginTagToContent("text")
    assert tags.EVENTS in plugins


def test_flushed_points_are_in_the_file(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    writer.scalars(1, {tags.TRAIN_LOSS: 1.0})
    writer.flush()
    assert curve(tmp_path, tags.TRAIN_LOSS) == [(1, 1.0)]
    writer.close()
    writer.flush()


def test_a_misspelled_tag_is_refused(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    with pytest.raises(ValueError, match="train/los"):
        writer.scalars(1, {"train/los": 1.0})
    writer.close()


def test_after_close_nothing_happens(tmp_path):
    writer = TensorBoardWriter(tmp_path)
    writer.close()
    written = {path: path.read_bytes() for path in tmp_path.iterdir()}
    writer.scalars(1, {tags.TRAIN_LOSS: 1.0})
    writer.close()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == written


def test_no_torch_is_imported():
    code = (
        "import importlib, pkgutil, sys\n"
        "import mgpt4_hpc.telemetry as room\n"
        "for module in pkgutil.iter_modules(room.__path__, 'mgpt4_hpc.telemetry.'):\n"
        "    importlib.import_module(module.name)\n"
        "assert not {'torch', 'tensorflow'} & sys.modules.keys()"
    )
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)

"""What rank 0 writes: into the ledger and the curves."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.telemetry import tags
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.report import read_texts
from mgpt4_hpc.train.recorder import FirstRankRecorder
from tests.cli.synthetic import make_run
from tests.support.runs import curve, records


def test_a_save_is_noted_and_drawn_with_its_stall(tmp_path: Path) -> None:
    run = make_run(tmp_path, "one")
    recorder = FirstRankRecorder(run, 1)
    recorder.event(Kind.START, nodes=["n1"], world_size=1, job_id="7", executor="slurm")
    recorder.open_curves(0)
    recorder.saved(10, Path("step-00000010"), 1.5, 0.25)
    recorder.close()
    assert curve(run.path, tags.CHECKPOINT_DURABLE_S) == [(10, 1.5)]
    assert curve(run.path, tags.CHECKPOINT_STALL_S) == [(10, 0.25)]
    (save,) = (record for record in records(run.path) if record["kind"] == "save")
    assert (save["durable_s"], save["stall_s"]) == (1.5, 0.25)


def test_a_change_while_it_trains_is_noted_printed_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, "one")
    recorder = FirstRankRecorder(run, 1)
    recorder.event(Kind.START, nodes=["n1"], world_size=1, job_id="7", executor="slurm")
    recorder.open_curves(0)
    assert tags.CHANGES not in read_texts(run.tensorboard)
    for step, last in ((7, 30), (9, 40)):
        recorder.changed(step, [f"train.max_steps was {last - 10}, is {last}"])
    recorder.close()
    (first, _), (second, shown) = read_texts(run.tensorboard)[tags.CHANGES]
    assert (first, second) == (7, 9)
    assert all(f"is {last}" in shown for last in (30, 40)), "the newest text lists all changes"
    assert "settings changed: train.max_steps was 20, is 30" in capsys.readouterr().out


def test_an_attempt_that_ends_before_it_draws_closes(tmp_path: Path) -> None:
    recorder = FirstRankRecorder(make_run(tmp_path, "one"), 1)
    recorder.event(Kind.END, cause="fatal")
    recorder.flush()
    recorder.close()
    assert not list((tmp_path / "one" / "tensorboard").glob("*"))

"""An attempt that should not go on, on a real run of the tiny world with one rank."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import rewrite_config, write_config
from mgpt4_hpc.errors import Overtaken
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.ledger import read_ledgers
from mgpt4_hpc.train import run as run_module
from mgpt4_hpc.train.state import Ending, Outcome
from mgpt4_hpc.train.stopping.stop import NeverStop
from tests.support.tiny_world import TinyWorld
from tests.unit.train.attempts import Stop, attempt


def forbidden(*args: object, **kwargs: object) -> None:
    raise AssertionError("the weights were loaded in spite of the stop")


@pytest.mark.slow
def test_a_stop_during_the_start_up_does_not_wait_for_the_weights(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.failed.write_text("of an earlier attempt")
    first = attempt(run, Stop(at=8))
    assert first.ending is Ending.STOPPED and first.step > 0
    assert not run.failed.exists(), "somebody brought the run back"

    ends: list[Outcome] = []
    monkeypatch.setattr(run_module, "build_run_model", forbidden)
    early = attempt(run, Stop(at=1), ends)
    assert ends == [early], "rank 0 still decides what follows"
    assert early == Outcome(Ending.STOPPED, first.step, first.step, first.step, "SIGTERM", 2)
    _, two = read_ledgers(run.ledger)
    assert (two.restored_step, two.last_step, two.steps_replayed) == (first.step, first.step, 0)


@pytest.mark.slow
def test_a_run_that_stops_early_does_so_at_the_same_step_however_often_it_is_interrupted(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    file = tiny_world.write_config(
        tmp_path / "x.yaml",
        train__max_steps=60,
        train__lr=1e-30,  # no weight changes, so the first held-out loss stays the lowest
        train__warmup_start_lr=1e-30,
        train__eval_every_steps=2,
        train__eval_samples=8,
        train__early_stop=3,
        data__val_fraction=0.2,
        data__num_workers=0,
        checkpoint={"keep_best": "val/loss", "keep_last": 1},
    )

    def finish(name: str, *stops_at: int, patience: int = 3) -> tuple[int, list[int], str]:
        made = RunDir(tmp_path / name)
        if not made.path.exists():
            made.create({"name": name, "stage": 1})
        wanted = load_config(file, overrides={"train.early_stop": patience})
        write_config(made.config_file, wanted)
        endings = [attempt(made, Stop(at)).ending for at in stops_at]
        assert set(endings) <= {Ending.STOPPED}
        outcome = attempt(made, NeverStop())
        assert outcome.ending is Ending.FINISHED and outcome.num_worse == patience
        assert f"in the last {patience} validations" in outcome.reason
        again = attempt(made, NeverStop())
        assert (again.ending, again.step) == (Ending.FINISHED, outcome.step)
        store = CheckpointStore(made.checkpoints)
        kept = store.steps()
        return outcome.step, kept, store.verify(store.path_of(kept[-1])).content

    alone = finish("alone")
    assert alone[:2] == (8, [2, 8]), "the best, and the last"
    # Polls fall between steps and inside of validations.
    assert finish("interrupted", 8, 9, 10, 9) == alone
    # More patience afterwards is more patience from the beginning.
    assert finish("interrupted", patience=5) == finish("patient", patience=5)


@pytest.mark.slow
def test_multiples_of_steps_are_saved_and_some_of_them_stay(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    made = RunDir(tmp_path / "run")
    made.create({"name": "run", "stage": 1})
    file = tiny_world.write_config(
        tmp_path / "x.yaml",
        train__save_every_s=1e9,
        train__lr_steps=24,
        data__num_workers=0,
        checkpoint={"save_every_steps": 4, "keep_every_steps": 10},
    )

    def saved(max_steps: int, keep_last: int) -> list[int]:
        asked = {"train.max_steps": max_steps, "checkpoint.keep_last": keep_last}
        resolved = load_config(file, overrides=asked)
        (rewrite_config if made.config_file.exists() else write_config)(made.config_file, resolved)
        assert attempt(made, NeverStop()).ending is Ending.FINISHED
        return CheckpointStore(made.checkpoints).steps()

    assert saved(24, keep_last=50) == [4, 8, 10, 12, 16, 20, 24]
    assert saved(33, keep_last=1) == [10, 20, 30, 33]


@pytest.mark.slow
def test_an_overtaken_attempt_stops_at_its_next_save_and_decides_nothing(run: RunDir) -> None:
    ends: list[Outcome] = []
    stop = Stop(then=lambda poll: run.claim_attempt({"job_id": "2"}) if poll == 12 else None)
    with pytest.raises(Overtaken, match="overtaken by attempt 2"):
        attempt(run, stop, ends)
    assert ends == []
    assert stop.polls < 400
    assert read_ledgers(run.ledger)[0].faults[-1]["what"] == "Overtaken"


@pytest.mark.slow
def test_a_finished_run_is_finished_again_at_once(tiny_world: TinyWorld, run: RunDir) -> None:
    text = run.config_file.read_text()
    run.config_file.write_text(text.replace("max_steps: 400", "max_steps: 5"))
    done = attempt(run, NeverStop())
    again = attempt(run, NeverStop())
    assert (done.ending, done.step) == (again.ending, again.step) == (Ending.FINISHED, 5)
    assert again.restored_step == 5

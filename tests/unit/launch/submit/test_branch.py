"""A run that continues another has the other's state and an identity of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import FakeSlurm, Mgpt4
from tests.cli.synthetic import submitted
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run


@pytest.mark.slow
def test_a_run_that_continues_another_has_its_state_and_an_identity_of_its_own(
    mgpt4: Mgpt4, world: TinyWorld, sbatch: Path, slurm: FakeSlurm, tmp_path: Path
) -> None:
    one = make_trained_run(world, tmp_path / "runs" / "one", 1, step=9)
    meta = {"samples_seen": 12, "num_worse": 2}
    CheckpointStore(one.checkpoints).commit(12, {"projector": {}}, meta)
    one.record_identity()
    submitted(one, "17")
    (one.slurm / "17_0_log.out").write_text("its log")
    before = sorted(one.path.rglob("*"))
    past = ("submit", "--from", "one@9", "--continue", "--set")
    for last, code in (("max_steps=9", 2), ("max_steps=10", 0)):
        ended = mgpt4(*past, last, "--dry-run")
        assert ended.code == code and ("no step is left" in ended.err) == bool(code), ended.err
    early = ("submit", "--from", "one@12", "--continue", "--set", "max_steps=40", "--dry-run")
    for patience, code in ((2, 2), (3, 0)):
        settings = f"early_stop={patience}", "data.val_fraction=0.2", "eval_every_steps=3"
        ended = mgpt4(*early, *(word for setting in settings for word in ("--set", setting)))
        assert ended.code == code, ended.err
        assert ("early_stop is 2: no step" in ended.err) == bool(code)
    idle = mgpt4(*past, "max_steps=40", "--set", "data.shares={}")
    assert idle.code == 2 and "set data.shares.SOURCE" in idle.err, idle.err
    wrong = mgpt4(*past, "max_steps=0", "--set", "lr=5")
    assert wrong.code == 2 and wrong.err.count("\n  - ") == 2, wrong.err
    ended = mgpt4(
        "submit", "--from", "one@9", "--continue", "--name", "two", "--set", "max_steps=40"
    )
    assert ended.code == 0, ended.err
    two = RunDir(Path("runs/two").absolute())
    assert [path.name for path in two.checkpoints.iterdir()] == ["step-00000009"]
    assert two.run_id != one.run_id and one.run_id in two.lineage
    assert two.identity()["branched_from"][-1]["step"] == 9
    assert two.identity()["created"]
    assert (two.code / "mgpt4_hpc").is_dir() and not list(two.slurm.glob("*log*"))
    train = read_config(two.config_file).config.train
    assert (train.max_steps, train.lr_steps) == (40, 12)
    assert sorted(one.path.rglob("*")) == before

"""A run whose inputs or libraries changed stops and shows it, unless a person accepts it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc import retry
from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import read_config, rewrite_config, write_config
from mgpt4_hpc.data.batching.batch import Batch
from mgpt4_hpc.data.sampling.order import mixing_pattern
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import MgptError, RunLocked, StorageTrouble
from mgpt4_hpc.run_dir import RunDir, read_json, write_json
from mgpt4_hpc.telemetry import tags
from mgpt4_hpc.telemetry.report import read_texts
from mgpt4_hpc.train import run as run_module
from mgpt4_hpc.train.inputs.pins import accept_drift, check_pins, version_drift
from mgpt4_hpc.train.step import StepResult, TrainStep
from mgpt4_hpc.train.stopping.stop import NeverStop, StopRequest
from tests.support.runs import records
from tests.support.tiny_world import TinyWorld
from tests.support.trained import other_weights
from tests.unit.train.attempts import attempt

FOUND = {"bundle": "b1", "config": "c1", "index laion": "i1"}


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "run")
    made.create({"name": "run", "stage": 1})
    return made


def install(monkeypatch: pytest.MonkeyPatch, folder: Path, name: str, version: str) -> None:
    """Another version of a library, as Python's own metadata tells it."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    monkeypatch.syspath_prepend(str(folder))


def hold(run: RunDir, **changes: str) -> list[tuple[list[str], bool]]:
    """What is told of a start that finds these."""
    told: list[tuple[list[str], bool]] = []
    check_pins(run, {**FOUND, **changes}, {}, lambda what, by, _: told.append((what, by)))
    return told


def test_the_first_start_pins_versions_too(run: RunDir) -> None:
    assert hold(run) == [] and hold(run) == []
    pins = read_json(run.pins_file)
    assert {"version of torch", "version of transformers", "version of timm"} <= set(pins)
    assert "numpy" in pins["noted"]


@pytest.mark.parametrize("name", ["torch", "transformers", "timm"])
def test_another_version_is_refused_with_both_shown(
    run: RunDir, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(run)
    was = read_json(run.pins_file)[f"version of {name}"]
    install(monkeypatch, tmp_path / "site", name, was + ".1")
    with pytest.raises(RunLocked) as caught:
        hold(run)
    assert f"version of {name} was {was}, is {was}.1" in str(caught.value)
    assert "--accept-drift" in str(caught.value)
    assert version_drift(run) == [f"version of {name} was {was}, is {was}.1"]


def test_another_numpy_is_told_once_and_not_refused(
    run: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(run)
    install(monkeypatch, tmp_path / "site", "numpy", "99.0")
    ((what, accepted),) = hold(run)
    assert "is 99.0" in what[0] and not accepted
    assert hold(run) == [] and version_drift(run) == []


def test_what_a_person_accepts_becomes_the_pin_once(run: RunDir) -> None:
    hold(run)
    accept_drift(run)
    ((what, accepted),) = hold(run, bundle="b2")
    assert what[0] == "bundle was b1, is b2" and what[1].startswith("accepted by ") and accepted
    assert hold(run, bundle="b2") == []
    with pytest.raises(RunLocked, match="bundle was b2, is b3"):
        hold(run, bundle="b3")


def test_an_acceptance_that_nothing_needed_does_not_wait_for_a_later_change(run: RunDir) -> None:
    accept_drift(run)
    hold(run)
    with pytest.raises(RunLocked):
        hold(run, config="c2")


def test_a_source_more_or_less_is_a_change(run: RunDir) -> None:
    hold(run)
    with pytest.raises(RunLocked, match="index cc_sbu was None, is i2"):
        hold(run, **{"index cc_sbu": "i2"})


def test_a_run_from_before_versions_were_pinned_gets_them(run: RunDir) -> None:
    write_json(run.pins_file, {**FOUND, "about": {"laion": "/x"}})
    assert hold(run) == []
    pins = read_json(run.pins_file)
    assert "version of torch" in pins and pins["about"] == {"laion": "/x"}


class StopAt(NeverStop):
    def __init__(self, polls: int) -> None:
        self.left = polls

    def poll(self) -> StopRequest | None:
        self.left -= 1
        return StopRequest("SIGTERM", 0.0) if self.left <= 0 else None


@pytest.mark.slow
def test_a_whole_start_refuses_edited_settings_and_goes_on_when_told(
    run: RunDir, tiny_world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tiny_world.write_config(tmp_path / "x.yaml", train__max_steps=400, data__num_workers=0)
    write_config(run.config_file, load_config(file))

    def start() -> int:
        claim = {"job_id": "1", "restart_count": 0}
        outcome = run_module.run_training(run, Ranks(), StopAt(6), claim=claim)
        return outcome.step - outcome.restored_step

    assert start() > 0
    stored = read_config(run.config_file)
    changed = load_config(file, overrides={"train.lr": 0.02})
    rewrite_config(run.config_file, changed)
    with pytest.raises(RunLocked, match=f"config was {stored.digest}, is {changed.digest}"):
        start()
    accept_drift(run)
    assert start() > 0
    drift = [record for record in records(run.path) if record["kind"] == "drift"]
    assert len(drift) == 1 and drift[0]["accepted"]
    assert drift[0]["what"][0] == f"config was {stored.digest}, is {changed.digest}"
    out = capsys.readouterr().out
    assert "changed: config was" in out and "WARNING" not in out, "the user asked for it"
    (shown,) = {text for _, text in read_texts(run.tensorboard)[tags.CHANGES]}
    assert "train.lr was 0.01, is 0.02" in shown


@pytest.mark.slow
def test_another_batch_and_mixture_continue_with_the_samples_that_come_next(
    run: RunDir, tiny_world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tiny_world.write_config(tmp_path / "x.yaml", train__max_steps=400, data__num_workers=0)
    write_config(run.config_file, load_config(file))
    seen: list[Batch] = []
    steps: list[TrainStep] = []

    def noting(step: TrainStep, batches: Sequence[Batch], *args: Any) -> StepResult:
        seen.extend(batches)
        steps.append(step)
        return trained(step, batches, *args)

    trained = TrainStep.__call__
    monkeypatch.setattr(TrainStep, "__call__", noting)
    first = attempt(run, StopAt(6))
    assert first.step > 1
    other = {
        "train.global_batch_size": 6,
        "train.weight_decay": 0.3,
        "data.shares": {"laion": 1, "cc_sbu": 2},
    }
    rewrite_config(run.config_file, load_config(file, overrides=other))
    accept_drift(run)
    seen.clear()
    second = attempt(run, StopAt(6))
    assert second.restored_step == first.step < second.step
    position = 4 * first.step
    positions = [place for batch in seen for place in batch.positions]
    assert positions == list(range(position, position + 6 * (second.step - first.step)))
    pattern = mixing_pattern((1, 2))
    assert [key.startswith("cc_sbu") for batch in seen for key in batch.keys] == [
        bool(pattern[place % len(pattern)]) for place in positions
    ]
    newest = CheckpointStore(run.checkpoints).load_newest()
    assert newest is not None and newest.meta["samples_seen"] == positions[-1] + 1
    assert {group["weight_decay"] for group in steps[-1].optimizer.param_groups} == {0.0, 0.3}


# -- what was there and is gone ----------------------------------------------------------------


@pytest.mark.slow
def test_data_that_vanish_cost_a_pause_or_a_crash_and_others_are_named(
    run: RunDir, tiny_world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mount, away = tmp_path / "mount", tmp_path / "away"
    shutil.copytree(tiny_world.weights, mount)
    file = tiny_world.write_config(tmp_path / "x.yaml", train__max_steps=400, data__num_workers=0)
    overrides = {"model.weights": str(mount)}
    write_config(run.config_file, load_config(file, overrides=overrides))

    def start() -> None:
        claim = {"job_id": "1", "restart_count": 0}
        run_module.run_training(run, Ranks(), StopAt(6), claim=claim)

    mount.rename(away)
    with pytest.raises(MgptError) as first:
        start()
    assert first.value.will_repeat, "a first start finds what is there, or a wrong setting"
    away.rename(mount)
    start()
    mount.rename(away)
    pauses: list[float] = []

    def stays_away(seconds: float) -> None:
        pauses.append(seconds)

    def comes_back(seconds: float) -> None:
        away.rename(mount)

    monkeypatch.setattr(
        run_module,
        "retry_storage",
        partial(retry.retry_storage, pauses_s=(1.0, 2.0), sleep=stays_away),
    )
    with pytest.raises(StorageTrouble) as lasting:
        start()
    assert not lasting.value.will_repeat and pauses == [1.0, 2.0]
    monkeypatch.setattr(
        run_module, "retry_storage", partial(retry.retry_storage, pauses_s=(1.0,), sleep=comes_back)
    )
    start()
    wrong = {
        "model.weights": str(other_weights(tiny_world, tmp_path / "wrong")),
        "data.paths.laion": str(tiny_world.shards("cc_sbu")),
    }
    rewrite_config(run.config_file, load_config(file, overrides=wrong))
    with pytest.raises(RunLocked) as refused:
        start()
    for key, value in wrong.items():
        assert f"{key}={value}" in refused.value.what and f"--set {key}=PATH" in refused.value.fix
    assert "data.paths.cc_sbu" not in str(refused.value), "it is what it was"


# -- settings that change on the way -----------------------------------------------------------


def start(run: RunDir, lr: float, settings: str, **found: str) -> tuple[list[str], list[str]]:
    """What a start with this rate is told of, and which changes are noted."""
    told: list[str] = []
    noted: list[str] = []
    check_pins(
        run,
        {**FOUND, "config": f"c{lr}", "settings": settings, **found},
        {"values": {"train.lr": lr}},
        lambda what, *_: told.extend(what),
        noted.extend,
    )
    return told, noted


def test_a_change_is_named_and_noted_once(run: RunDir) -> None:
    assert start(run, 0.1, "s1") == ([], [])
    with pytest.raises(RunLocked, match=r"config was c0\.1, is c0\.2; train\.lr was 0\.1, is 0\.2"):
        start(run, 0.2, "s2")
    accept_drift(run)
    told, noted = start(run, 0.2, "s2")
    assert noted == ["train.lr was 0.1, is 0.2"] and "accepted by" in told[-1]
    assert start(run, 0.2, "s2") == ([], [])
    assert read_json(run.pins_file)["about"]["earlier configs"] == ["c0.1", "s1"]


def test_what_leaves_the_steps_as_they_are_is_noted_and_needs_nobody(run: RunDir) -> None:
    start(run, 0.1, "s1")
    assert start(run, 0.2, "s1") == ([], ["train.lr was 0.1, is 0.2"])


def test_settings_alone_may_be_accepted(run: RunDir) -> None:
    start(run, 0.1, "s1")
    for settings, found in (("s3", {}), ("s2", {"bundle": "b2"})):
        accept_drift(run, "s2")
        with pytest.raises(RunLocked):
            start(run, 0.2, settings, **found)
    assert start(run, 0.2, "s2")[1] == ["train.lr was 0.1, is 0.2"]


def test_a_run_that_an_older_release_pinned_goes_on(run: RunDir) -> None:
    hold(run)
    told: list[str] = []
    found = {**FOUND, "settings": "s1"}
    for _ in range(2):
        check_pins(run, found, {"values": {}}, lambda what, accepted: told.extend(what))
    assert told == [] and read_json(run.pins_file)["settings"] == "s1"
    write_json(run.pins_file, {**FOUND, "config": "c0"})
    with pytest.raises(RunLocked, match="config was c0, is c1"):
        check_pins(run, found, {}, lambda *_: None)

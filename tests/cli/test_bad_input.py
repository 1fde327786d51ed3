"""Wrong input to `submit`: the right exit code, a sentence with the fix, and nothing written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cli.fakes import Mgpt4
from tests.cli.refusals import refused
from tests.cli.synthetic import attempt, make_run, submitted
from tests.support.tiny_world import TinyWorld


@pytest.fixture
def stage2(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return world.write_config(tmp_path_factory.mktemp("config") / "stage2.yaml", 2)


DEEP = "[" * 20_000  # beyond the recursion limits of every Python; YAML takes 50 us for each


@pytest.mark.slow
@pytest.mark.parametrize(
    "file", ["run.json", "config.yaml", "pins.json", "heartbeat.json", "slurm/job.json", "CANCEL"]
)
def test_a_file_of_a_run_that_is_nested_too_deeply(mgpt4: Mgpt4, file: str) -> None:
    run = make_run(Path("runs"))
    submitted(run)
    attempt(run, 1, first=1, last=3)
    (run.path / file).write_text(DEEP)
    for command in ("status", "history", "config show", "cancel", "resume", "rm --yes", "keep"):
        ended = mgpt4(*command.split(), "one")
        assert "Traceback" not in ended.err and "RecursionError" not in ended.err, command


@pytest.mark.parametrize("file", ["architecture.json", "llm/config.json"])
def test_a_bundles_file_that_is_nested_too_deeply(
    mgpt4: Mgpt4, world: TinyWorld, tmp_path: Path, file: str
) -> None:
    shutil.copytree(world.weights, tmp_path / "weights")
    (tmp_path / "weights" / file).write_text(DEEP)
    ended = mgpt4("weights", "check", tmp_path / "weights")
    assert ended.code == 1 and "nested too deeply" in ended.err + ended.out


@pytest.fixture(autouse=True)
def no_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What should have been refused must not begin to run."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a job was submitted")

    monkeypatch.setattr("mgpt4_hpc.launch.submit.execute.submit_run", refuse)


def test_unknown_setting(mgpt4: Mgpt4, stage1: Path) -> None:
    told = refused(mgpt4, 2, "--config", stage1, "--set", "trian.lr=1")
    assert "unknown setting 'trian.lr'" in told
    assert "did you mean train.lr?" in told


def test_unknown_setting_in_the_file(
    mgpt4: Mgpt4, world: TinyWorld, tmp_path_factory: pytest.TempPathFactory
) -> None:
    config = world.write_config(tmp_path_factory.mktemp("c") / "x.yaml", 1, train__lrr=1)
    told = refused(mgpt4, 2, "--config", config)
    assert "train.lrr: unknown setting; did you mean train.lr?" in told


def test_unknown_preset(mgpt4: Mgpt4) -> None:
    assert "presets" in refused(mgpt4, 2, "--config", "no-such-preset")


def test_every_fault_of_a_config_at_once(mgpt4: Mgpt4, stage1: Path) -> None:
    told = refused(
        mgpt4, 2, "--config", stage1, "--set", "lr=-1", "--set", "max_steps=0", "--set", "seed=x"
    )
    for key in ("train.lr", "train.max_steps", "seed"):
        assert f"  - {key}: " in told


def test_an_unknown_name_does_not_hide_the_other_faults(
    mgpt4: Mgpt4, stage1: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MGPT4_TRAIN__LRR", "1")
    told = refused(
        mgpt4, 2, "--config", stage1, "--set", "trian.lr=1", "--set", "max_steps=0", "--set",
        "launch.gpus", "--sbatch", "nice", "--set", "lr=-1",
    )  # fmt: skip
    for fault in (
        "--set 'trian.lr=1': unknown setting",
        "--set 'launch.gpus': write key=value",
        "--sbatch 'nice': write key=value",
        "MGPT4_TRAIN__LRR: unknown setting",
        "train.max_steps: ",
        "train.lr: ",
    ):
        assert f"  - {fault}" in told
    alone = refused(mgpt4, 2, "--config", stage1, "--set", "trian.lr=1")
    assert "--set 'trian.lr=1': unknown setting" in alone


def test_neither_stage_nor_config(mgpt4: Mgpt4) -> None:
    assert "--stage" in refused(mgpt4, 2)


def test_the_wrong_stage(mgpt4: Mgpt4, stage1: Path) -> None:
    assert "is for stage 1" in refused(mgpt4, 2, "--config", stage1, "--stage", "2")


def test_missing_shard(mgpt4: Mgpt4, stage1: Path) -> None:
    sources = "data.sources=[{name: laion, path: '/nowhere/{00000..00003}.tar'}]"
    told = refused(mgpt4, 3, "--config", stage1, "--set", sources)
    assert "data source laion" in told
    assert "/nowhere/00000.tar" in told


def test_stage_2_without_stage_1(mgpt4: Mgpt4, stage2: Path) -> None:
    assert "--after RUN" in refused(mgpt4, 3, "--config", stage2)


def test_stage_2_from_what_is_not_there(mgpt4: Mgpt4, stage2: Path) -> None:
    told = refused(mgpt4, 3, "--config", stage2, "--set", "model.projector=/nowhere/p.pth")
    assert "/nowhere/p.pth does not exist" in told


def test_after_an_unknown_run(mgpt4: Mgpt4, stage2: Path) -> None:
    assert "other" in refused(mgpt4, 6, "--config", stage2, "--after", "other")


def test_weights_that_are_not_there(mgpt4: Mgpt4, stage1: Path) -> None:
    told = refused(mgpt4, 3, "--config", stage1, "--set", "model.weights=/nowhere/w")
    assert "mgpt4 weights import" in told


def test_all_that_is_missing_at_once(mgpt4: Mgpt4, stage2: Path) -> None:
    told = refused(
        mgpt4, 3, "--config", stage2, "--set", "model.weights=/nowhere/w",
        "--set", "data.sources=[{name: a, path: /nowhere/d}]",
    )  # fmt: skip
    assert told.count("  - ") == 3


def test_runs_dir_below_a_file(mgpt4: Mgpt4, stage1: Path) -> None:
    told = refused(mgpt4, 3, "--config", stage1, "--runs-dir", stage1 / "runs")
    assert "is no folder" in told


def test_runs_dir_that_anybody_may_exchange(
    mgpt4: Mgpt4, stage1: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    shared = tmp_path_factory.mktemp("shared")
    shared.chmod(0o777)
    printed = refused(mgpt4, 3, "--config", stage1, "--runs-dir", shared / "lab" / "runs")
    assert f"anybody may rename things in {shared} (chmod o-w {shared}), or give --ru" in printed


def test_a_folder_that_may_not_be_searched_is_told_in_a_sentence(
    mgpt4: Mgpt4, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Root, who runs the tests, may search any. Libraries ask about folders of their own meanwhile.
    real = Path.is_dir

    def denied(path: Path, **how: Any) -> bool:
        if Path("/closed") in path.parents:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, **how)

    monkeypatch.setattr(Path, "is_dir", denied)
    ended = mgpt4("status", "one", "--runs-dir", "/closed/runs")
    assert (ended.code, ended.err) == (1, "error: /closed/runs: Permission denied\n")


def test_runs_dir_that_cannot_be_written(mgpt4: Mgpt4, stage1: Path) -> None:
    # /proc refuses even root, though it has write permission there.
    ended = mgpt4("submit", "--executor", "local", "--config", stage1, "--runs-dir", "/proc/runs")
    assert ended.code in (1, 3)
    assert "give --runs-dir a writable folder" in ended.err


@pytest.mark.parametrize("command", ["status", "history", "logs", "cancel", "resume"])
@pytest.mark.parametrize("name", ["other", "a b", "$(touch x)", "a\nb", "../..", "", "[red]"])
def test_no_such_run(mgpt4: Mgpt4, command: str, name: str) -> None:
    ended = mgpt4(command, "--", name)
    assert ended.code == 6
    assert "no run" in ended.err
    assert list(Path().iterdir()) == []


def test_values_in_the_script_are_quoted(
    mgpt4: Mgpt4,
    world: TinyWorld,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A runs folder with spaces and quotes, rendered: the shell sees it as one word."""
    folder = tmp_path_factory.mktemp("odd") / "it's $(touch x) a folder"
    folder.mkdir()
    config = world.write_config(folder / "c.yaml", 1)
    monkeypatch.setattr("mgpt4_hpc.launch.slurm.commands.has_slurm", lambda: False)
    ended = mgpt4("submit", "--config", config, "--dry-run", "--executor", "slurm",
                  "--runs-dir", folder)  # fmt: skip
    assert ended.code == 0, ended.err
    script = folder / "script.sh"
    script.write_text(ended.out)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    fakes = folder / "bin"
    fakes.mkdir()
    for name in ("srun", "scontrol", Path(sys.executable).name):
        (fakes / name).write_text("#!/bin/sh\nexit 0\n")
        (fakes / name).chmod(0o755)
    body = script.read_text().replace(sys.executable, str(Path(sys.executable).name))
    environment = {**os.environ, "PATH": f"{fakes}:{os.environ['PATH']}", "SLURMD_NODENAME": "n"}
    subprocess.run(["bash", "-c", body], cwd=fakes, env=environment, check=False)
    assert not (fakes / "x").exists()
    assert not Path("x").exists()


def test_a_suite_without_its_libraries(
    mgpt4: Mgpt4,
    world: TinyWorld,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = {"train__eval_suites": ["caption"], "train__eval_every_steps": 5}
    folder = tmp_path_factory.mktemp("c")
    config = world.write_config(folder / "x.yaml", 1, **asked, data__val_fraction=0.2)
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    told = refused(mgpt4, 3, "--config", config)
    assert "train.eval_suites" in told and "mgpt4-hpc[eval]" in told
    never = world.write_config(folder / "y.yaml", 1, train__eval_suites=["failure"])
    assert "never asked" in refused(mgpt4, 2, "--config", never)

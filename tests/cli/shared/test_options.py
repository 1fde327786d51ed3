"""Values of options that several commands share: the exit code, the fix, and nothing written."""

from pathlib import Path
from typing import Any

import pytest

from tests.cli.fakes import Mgpt4
from tests.cli.refusals import refused


@pytest.fixture(autouse=True)
def no_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What should have been refused must not begin to run."""

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a job was submitted")

    monkeypatch.setattr("mgpt4_hpc.launch.submit.execute.submit_run", refuse)


@pytest.mark.parametrize("gpus", ["0", "-1", "two"])
def test_gpus(mgpt4: Mgpt4, stage1: Path, gpus: str) -> None:
    assert "launch.gpus" in refused(mgpt4, 2, "--config", stage1, "--gpus", gpus)


@pytest.mark.parametrize("time", ["0", "soon", "x-5", "1:2:3:4"])
def test_time(mgpt4: Mgpt4, stage1: Path, time: str) -> None:
    assert "launch.time_min: " in refused(mgpt4, 2, "--config", stage1, "--time", time)


@pytest.mark.parametrize(
    "name", ["a b", "a'b", 'a"b', "a\nb", "$(touch x)", "`touch x`", "../up", "-rf", "a/b", "", "ä"]
)
def test_hostile_names(mgpt4: Mgpt4, stage1: Path, name: str) -> None:
    ended = mgpt4(
        "submit", "--executor", "local", "--config", stage1, "--dry-run", f"--set=name={name!r}"
    )
    assert ended.code == 2
    assert "name" in ended.err
    assert list(Path().iterdir()) == []

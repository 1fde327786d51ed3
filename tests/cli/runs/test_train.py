"""``mgpt4 train`` is ``python -m mgpt4_hpc.train`` and nothing else."""

from typing import Any

import click
import pytest

from mgpt4_hpc.cli.runs.train import train_command
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.train import __main__ as module
from tests.cli.fakes import Mgpt4


def options(command: click.Command) -> dict[str, tuple[list[str], bool, bool]]:
    return {
        str(option.name): (option.opts, option.required, getattr(option, "multiple", False))
        for option in command.params
    }


def test_the_same_options() -> None:
    assert options(train_command) == options(module.command)


def test_they_arrive(mgpt4: Mgpt4, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(module.command, "callback", lambda **given: seen.update(given))
    arguments = ["--cfg-path", "x", "--run-dir", "a b", "--set", "lr=1", "--set", "seed=2"]
    assert mgpt4("train", *arguments).code == 0
    assert (seen["config"], str(seen["run_dir"])) == ("x", "a b")
    assert seen["assignments"] == ("lr=1", "seed=2")
    assert seen["accept_drift"] is False
    assert mgpt4("train", *arguments, "--accept-drift").code == 0
    assert seen["accept_drift"] is True


def test_errors_arrive_too(mgpt4: Mgpt4, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**given: Any) -> None:
        raise ConfigError("no such preset", fix="choose another")

    monkeypatch.setattr(module.command, "callback", refuse)
    ended = mgpt4("train", "--cfg-path", "x")
    assert ended.code == 2
    assert "fix: choose another" in ended.err

"""The pages against the commands: they show what there is, and what they show works."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mgpt4_hpc.launch.sweep_dir import SweepDir, create_sweep
from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import FakeSlurm, Mgpt4
from tests.cli.synthetic import attempt, make_run, submitted
from tests.support.shown import assert_schema, assert_understood, contracts, shown_commands
from tests.support.tiny_world import TinyWorld

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))

import make_cli_docs

ROOT = Path(__file__).parents[2]

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {" ".join(words): command for words, command in make_cli_docs.commands()}


def test_the_page_is_what_the_commands_say() -> None:
    assert make_cli_docs.PAGE.read_text() == make_cli_docs.page(), "run `make docs`"


def test_every_command_has_its_exit_codes_and_fields() -> None:
    assert contracts().keys() == COMMANDS.keys(), "docs/cli.yaml and the commands differ"
    has_json = {
        name
        for name, command in COMMANDS.items()
        if any("--json" in option.opts for option in command.params)
    }
    assert {name for name, contract in contracts().items() if "json" in contract} == has_json


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_an_example(name: str) -> None:
    assert any(f"mgpt4 {name}" in shown for shown in make_cli_docs.examples(COMMANDS[name]))


SHOWN = [
    pytest.param(words, id=f"{page.name}: {' '.join(words)}"[:100])
    for page in PAGES
    for words in shown_commands(page.read_text())
]


@pytest.mark.parametrize("words", SHOWN)
def test_every_command_line_shown_is_understood(words: list[str]) -> None:
    assert_understood(words)


@pytest.fixture
def place(world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the examples of the pages find what they name."""
    runs = tmp_path / "runs"
    swept = [f"my-sweep-seed{seed}" for seed in (1, 2)]
    for name in ("stage1-vicuna7b", "stage2-vicuna7b", "first-try", "second-try", *swept):
        run = make_run(runs, name)
        submitted(run)
        attempt(run, 1, first=1, last=50, cause="preempted")
        attempt(run, 2, first=41, last=100, restart_count=1, cause="finished")
        log = "=== one: attempt 1 on 2 rank(s) ===\n=== one: attempt 2 on 2 rank(s) ===\n"
        for rank in range(4):
            (run.slurm / f"17_{rank}_log.out").write_text(log)
    sweep = SweepDir.of("my-sweep", runs)
    create_sweep(sweep, [RunDir(runs / name) for name in swept], [{}, {}], "slurm")
    (tmp_path / "reports").mkdir()
    monkeypatch.setenv("MGPT4_WEIGHTS", str(world.weights))
    return tmp_path


HERE = [
    *("status", "history", "usage", "logs", "cancel", "resume", "ls", "rm", "report", "version"),
    *("config keys", "config presets", "config sites", "config show", "config explain"),
    *("weights check", "completion"),
]
"""Commands whose examples run here as they are shown; the others need a cluster, a GPU's time, a
network or people's own files, and have tests of their own."""
ENDLESS = ("--watch",)


@pytest.mark.parametrize("name", HERE)
def test_examples_work_as_they_are_shown(
    name: str, mgpt4: Mgpt4, slurm: FakeSlurm, place: Path
) -> None:
    shown = "```\n" + "\n".join(make_cli_docs.examples(COMMANDS[name])) + "\n```\n"
    for words in shown_commands(shown):
        if any(word in ENDLESS for word in words) or "/data/vicuna7b-bundle" in words:
            continue
        ended = mgpt4(*words, *(["--yes"] if words[0] == "rm" and "--yes" not in words else []))
        assert ended.code == 0, (words, ended.err)


JSON = [
    ["status"],
    ["history", "first-try"],
    ["usage"],
    ["cancel", "first-try"],
    ["resume", "first-try"],
    ["ls"],
    ["rm", "first-try", "--yes"],
    ["config", "keys"],
    ["config", "presets"],
    ["config", "sites"],
    ["config", "show", "toy-stage1"],
    ["config", "explain", "toy-stage1"],
    ["data", "index", "SHARDS", "--out", "x.index"],
    ["data", "check", "SHARDS"],
    ["data", "pack", "ALIGN", "--out", "packed"],
    ["data", "stats", "SHARDS"],
    ["weights", "check", "toy:weights"],
    ["report", "first-try"],
    ["version"],
]


@pytest.mark.parametrize("words", JSON, ids=lambda words: " ".join(words[:2]))
def test_json_has_the_fields_that_the_page_promises(
    words: list[str], mgpt4: Mgpt4, slurm: FakeSlurm, place: Path, world: TinyWorld
) -> None:
    known = {"SHARDS": str(world.shards("laion")), "ALIGN": str(world.align)}
    ended = mgpt4(*(known.get(word, word) for word in words), "--json")
    assert ended.code == 0, ended.err
    name = " ".join(words[:2]) if " ".join(words[:2]) in contracts() else words[0]
    assert_schema(name, ended.json)

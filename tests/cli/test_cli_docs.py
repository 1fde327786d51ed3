"""The pages against the commands: they show what there is, and what they show works."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import make_cli_docs
import pytest

from tests.cli.fakes import FakeSlurm, Mgpt4
from tests.cli.synthetic import place_with_runs, write_original, write_pairs
from tests.support.examples import EXECUTED, LINES
from tests.support.shown import assert_schema, assert_understood, contracts, shown_commands
from tests.support.tiny_world import TinyWorld

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


def test_every_example_is_run_by_a_test() -> None:
    # Each of these says on import which lines it runs, and fails if it then does not.
    for module in ("cli", "integration", "slurm"):
        import_module(f"tests.{module}.test_examples")
    import_module("tests.integration.test_demo")
    import_module("tests.integration.test_benchmarks")
    assert LINES.keys() - EXECUTED.keys() == set()
    assert {LINES[line] for line in EXECUTED} == COMMANDS.keys()


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
    ["config", "import", "ORIGINAL"],
    ["data", "convert", "PAIRS", "--out", "list"],
    ["data", "encode", "TINY", "--out", "features"],
    [
        "weights",
        "import",
        "--vit",
        "VIT",
        "--qformer",
        "QFORMER",
        "--llm",
        "LLM",
        "--out",
        "bundle",
    ],
]
ELSEWHERE = {
    "demo": "tests/integration/conftest.py",
    "submit": "tests/slurm/jobs.py, tests/integration/test_local_sweep.py",
    "drill": "tests/slurm/test_site_check.py",
    "tensorboard": "tests/integration/test_tensorboard.py",
    "data download": "tests/integration/data/test_download.py",
    "data fetch": "tests/integration/data/test_fetch.py",
    "data recaption": "tests/integration/test_examples.py",
    "doctor": "tests/cli/site/test_doctor.py",
    "eval": "tests/cli/model/test_eval.py",
    "keep": "tests/cli/runs/test_keep.py",
    "compare": "tests/cli/model/test_compare.py",
    "weights fetch": "tests/unit/model/bundle/test_fetch.py",
}
"""Commands whose JSON takes more than a moment to make, and where it is held to the page."""


@pytest.fixture
def place(world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MGPT4_WEIGHTS", str(world.weights))
    return place_with_runs(tmp_path)


def command_of(words: list[str]) -> str:
    name = " ".join(words[:2])
    return name if name in contracts() else words[0]


def test_all_json_is_held_to_the_page() -> None:
    here = {command_of(words) for words in JSON}
    has_json = {name for name, contract in contracts().items() if "json" in contract}
    assert here | ELSEWHERE.keys() == has_json
    for name, files in ELSEWHERE.items():
        for file in files.split(", "):
            assert f'assert_schema("{name}", ' in (ROOT / file).read_text(), (name, file)
    # An object of nothing but further keys would be any object.
    assert all(contracts()[name]["fields"].keys() - {"..."} for name in has_json)


@pytest.mark.slow
@pytest.mark.parametrize("words", JSON, ids=lambda words: " ".join(words[:2]))
def test_json_has_the_fields_that_the_page_promises(
    words: list[str], mgpt4: Mgpt4, slurm: FakeSlurm, place: Path, world: TinyWorld
) -> None:
    known = {
        "SHARDS": str(world.shards("laion")),
        "ALIGN": str(world.align),
        "ORIGINAL": str(write_original(place)),
        "PAIRS": str(write_pairs(place / "pairs.json")),
        "TINY": str(world.write_config(place / "tiny.yaml")),
        "VIT": str(world.weights / "eva_vit_g.pth"),
        "QFORMER": str(world.weights / "blip2_pretrained_flant5xxl.pth"),
        "LLM": str(world.weights / "llm"),
    }
    ended = mgpt4(*(known.get(word, word) for word in words), "--json")
    assert ended.code == 0, ended.err
    assert_schema(command_of(words), ended.json)


NOWHERE = [
    *("status gone", "history gone", "usage gone", "logs gone", "cancel gone", "resume gone"),
    *("rm --yes gone", "tensorboard gone", "eval gone", "compare gone gone", "report gone"),
    *("chat --checkpoint gone", "serve gone", "submit --stage 2 --after gone --executor local"),
    "keep gone",
    "weights export gone --format pth --out x.pth",
]


def test_every_command_that_may_miss_a_run_is_asked_for_one() -> None:
    missing_runs = {name for name in COMMANDS if 6 in contracts()[name].get("exits", {})}
    assert {command_of(line.split()) for line in NOWHERE} == missing_runs


@pytest.mark.parametrize("line", NOWHERE)
def test_a_run_that_is_not_there_ends_with_6(
    line: str, mgpt4: Mgpt4, slurm: FakeSlurm, place: Path
) -> None:
    ended = mgpt4(*line.split())
    assert ended.code == 6, ended.err
    assert "gone" in ended.err

"""What pages show: command lines to be tried, and what ``--json`` is said to print."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import click
import yaml

from mgpt4_hpc.cli.main import cli

CONTRACTS = Path(__file__).parents[2] / "docs" / "cli.yaml"
_TYPES = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "list": list,
    "object": dict,
    "any": object,
}
_KIND = re.compile(r"(str|int|float|bool|list|object|any)(\??)(?=$|[ ,])")


def shown_commands(text: str) -> Iterator[list[str]]:
    """Every ``mgpt4`` command of a page's code blocks, as words without the first."""
    for block in re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        pending = ""
        for line in block.replace("\\\n", " ").splitlines():
            if not pending and not line.lstrip().startswith("mgpt4 "):
                continue  # what a command prints, or another program
            pending += line + "\n"
            try:
                words = shlex.split(pending, comments=True)
            except ValueError:  # a quotation that goes on
                continue
            pending = ""
            if words[:1] == ["mgpt4"]:
                end = next(
                    (n for n, word in enumerate(words) if word in (">", ">>", "|", "&")), None
                )
                yield words[1:end]
        assert not pending


def assert_understood(words: list[str]) -> None:
    """The command line names a command, and options and values that it takes."""
    name: str | None = "mgpt4"
    command: click.Command | None = cli
    while isinstance(command, click.Group):
        name, command, words = command.resolve_command(click.Context(command), words)
    assert command is not None
    try:
        command.make_context(name, list(words))
    except click.exceptions.Exit:
        pass  # --help
    except click.BadParameter as error:
        if "does not exist" not in error.message:  # the reader has that file, we have not
            raise


@cache
def contracts() -> dict[str, dict[str, Any]]:
    """docs/cli.yaml."""
    return yaml.safe_load(CONTRACTS.read_text())


def assert_schema(command: str, printed: Any) -> None:
    """What ``--json`` printed is what docs/cli.yaml promises: these keys, of these types."""
    contract = contracts()[command]
    if contract["json"] == "list":
        assert isinstance(printed, list)
        assert printed, f"{command}: an empty list shows nothing"
    for item in printed if contract["json"] == "list" else [printed]:
        _assert_object(command, item, contract["fields"])


def _assert_object(command: str, item: Any, fields: dict[str, str]) -> None:
    assert isinstance(item, dict)
    named = fields.keys() - {"..."}
    assert named <= item.keys(), f"{command}: {named - item.keys()} missing"
    if "..." not in fields:
        assert item.keys() <= named, f"{command}: {item.keys() - named} not in docs/cli.yaml"
    for key in named:
        match = _KIND.match(fields[key])
        assert match, f"{command}: {key}: {fields[key]!r} begins with no type"
        kind, nullable = match.groups()
        value = item[key]
        if value is None:
            assert nullable or kind == "any", f"{command}: {key} is null"
        else:
            assert isinstance(value, _TYPES[kind]), f"{command}: {key} is {value!r}, not {kind}"
            assert kind == "bool" or not isinstance(value, bool) or kind == "any"

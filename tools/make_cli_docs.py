"""Write docs/cli.md from the commands themselves and docs/cli.yaml.

python tools/make_cli_docs.py            write it, and configs/schema.json
python tools/make_cli_docs.py --check    exit 1 if it is not what would be written
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import click
import yaml

from mgpt4_hpc.cli.main import cli
from mgpt4_hpc.config.describe import json_schema
from mgpt4_hpc.resources import configs_dir

DOCS = Path(__file__).resolve().parent.parent / "docs"
PAGE, CONTRACTS = DOCS / "cli.md", DOCS / "cli.yaml"
SCHEMA = configs_dir() / "schema.json"
_ROOT = click.Context(cli, info_name="mgpt4")
_INTRODUCTION = """\
<!-- Written by tools/make_cli_docs.py from the commands and docs/cli.yaml; `make docs` -->

# The command line

`mgpt4 COMMAND --help` prints the same text as this page. Results go to stdout, everything else to
stderr; commands whose output a script may read have `--json`. A run is given by its name under
`--runs-dir` (or `MGPT4_RUNS_DIR`), or by its path. A setting is changed with `--set KEY=VALUE`.
Flags override `MGPT4_*` variables, these the site profile, and that the config file; `mgpt4 config
explain` prints where each value comes from.

Every command ends with 0 when it did what was asked, and with 2 when it was asked wrongly. The
other codes mean the same everywhere:

| code | meaning |
|---|---|
| 1 | it failed: a run, a file, a server |
| 2 | wrong usage or settings; all faults are listed |
| 3 | a preflight check refused; all faults are listed |
| 4 | Slurm rejected the job |
| 5 | Slurm does not answer |
| 6 | no such run |
| 7 | locked, made by a newer version, or changed since it started |
| 130 | interrupted, or the answer was no |

A trainer ends with 0 (finished), 70 (it would fail again), 71 (the node is at fault) or 75
(stopped, resumable); [troubleshooting.md](troubleshooting.md) has what to do about each.

JSON fields are written as `name: type`; a `?` means that it may be null.
"""


def commands(
    group: click.Group = cli, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that does something, with its words, in the order of the help."""
    for name in group.list_commands(_ROOT):
        command = group.get_command(_ROOT, name)
        assert command is not None
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


def examples(command: click.Command) -> list[str]:
    """The command lines of its help, continuation lines joined to them."""
    found: list[str] = []
    for block in _blocks(command):
        if block.startswith("\b\n") and re.search(r"^\s*(mgpt4|torchrun) ", block[2:], re.M):
            found.append(textwrap.dedent(block[2:]).rstrip())
    return found


def _blocks(command: click.Command) -> list[str]:
    text = inspect.cleandoc(command.help or "")
    return [block for block in re.split(r"\n\s*\n", text) if block.strip()]


def _prose(command: click.Command) -> str:
    shown = set(examples(command))
    parts = []
    for block in _blocks(command):
        if not block.startswith("\b\n"):
            parts.append(textwrap.fill(" ".join(block.split()), 106, break_on_hyphens=False))
        elif textwrap.dedent(block[2:]).rstrip() not in shown:
            parts.append("```\n" + textwrap.dedent(block[2:]).rstrip() + "\n```")
    return "\n\n".join(parts)


def _options(command: click.Command, words: tuple[str, ...]) -> str:
    context = click.Context(command, info_name=" ".join(words), parent=_ROOT)
    rows = []
    for option in command.params:
        record = option.get_help_record(context) if isinstance(option, click.Option) else None
        if record is not None:
            rows.append(f"| `{_cell(record[0])}` | {_cell(record[1])} |")
    return "\n".join(["| option | what it does |", "|---|---|", *rows])


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def section(words: tuple[str, ...], command: click.Command, contract: Mapping[str, Any]) -> str:
    """One command's part of the page."""
    context = click.Context(command, info_name=" ".join(words), parent=_ROOT)
    usage = " ".join(command.collect_usage_pieces(context))
    parts = [f"## mgpt4 {' '.join(words)}", f"`mgpt4 {' '.join(words)} {usage}`", _prose(command)]
    shown = examples(command)
    if shown:
        parts.append("```\n" + "\n".join(shown) + "\n```")
    parts.append(_options(command, words))
    exits = contract.get("exits")
    if exits:
        told = "; ".join(f"**{code}** {when}" for code, when in sorted(exits.items()))
        parts.append(f"Exit codes: {told}.")
    if "json" in contract:
        kind = "a list of objects" if contract["json"] == "list" else "an object"
        fields = "\n".join(
            "- further keys" if key == "..." else f"- `{key}`: {told}"
            for key, told in contract["fields"].items()
        )
        parts.append(f"`--json` prints {kind}:\n\n{fields}")
    return "\n\n".join(parts)


def contracts() -> dict[str, dict[str, Any]]:
    """docs/cli.yaml."""
    return yaml.safe_load(CONTRACTS.read_text())


def page() -> str:
    """The whole page."""
    known = contracts()
    parts = [_INTRODUCTION.rstrip()]
    parts += [section(words, command, known[" ".join(words)]) for words, command in commands()]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    made = {PAGE: page(), SCHEMA: json.dumps(json_schema(), indent=2, sort_keys=True) + "\n"}
    old = [path for path, text in made.items() if path.read_text() != text]
    if options.check:
        sys.exit(f"{old[0]} is out of date: run `make docs`" if old else 0)
    for path in old:
        path.write_text(made[path])


if __name__ == "__main__":
    main()

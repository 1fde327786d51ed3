"""Every command can be imported and explains itself, and the light ones stay light."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import click
import pytest

from mgpt4_hpc.cli.main import COMMANDS, cli
from tests.cli.fakes import Mgpt4
from tests.cli.synthetic import make_run
from tests.support.tiny_world import TinyWorld

ROOT = click.Context(cli)


def commands(group: click.Group = cli, prefix: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Every command and subcommand as its words."""
    found: list[tuple[str, ...]] = []
    for name in group.list_commands(ROOT):
        found.append((*prefix, name))
        command = group.get_command(ROOT, name)
        if isinstance(command, click.Group):
            found += commands(command, (*prefix, name))
    return found


def test_help_lists_every_command(mgpt4: Mgpt4) -> None:
    ended = mgpt4("--help")
    assert ended.code == 0
    for name, (_, line) in COMMANDS.items():
        assert name in ended.out
        assert line.split()[0] in ended.out


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_help_of(mgpt4: Mgpt4, words: tuple[str, ...]) -> None:
    ended = mgpt4(*words, "--help")
    assert ended.code == 0
    assert ended.out.startswith("Usage: ")
    assert " ".join(words) in ended.out
    assert ended.err == ""


def command_of(words: tuple[str, ...]) -> click.Command:
    command: click.Command = cli
    for word in words:
        assert isinstance(command, click.Group)
        found = command.get_command(ROOT, word)
        assert found is not None
        command = found
    return command


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_every_option_has_a_line_of_help(words: tuple[str, ...]) -> None:
    command = command_of(words)
    assert command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help, f"{' '.join(words)} {option.opts[0]}"


def test_every_number_is_finite(mgpt4: Mgpt4) -> None:
    floats = 0
    for words in commands():
        for option in command_of(words).params:
            if isinstance(option.type, click.types.FloatParamType):
                floats += 1
                for value in ("nan", "inf", "-inf", "1e400"):
                    with pytest.raises(click.BadParameter):
                        option.type.convert(value, option, ROOT)
            if option.name == "seed":
                assert isinstance(option.type, click.IntRange) and option.type.min == 0
    assert floats > 10, "they are looked at"
    ended = mgpt4("chat", "--temperature", "nan", "photo.jpg")
    assert ended.code == 2 and "'nan' is not a finite number" in ended.err


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_and_the_command_say_the_same(name: str) -> None:
    command = cli.get_command(ROOT, name)
    assert command is not None
    assert command.name == name
    if command.short_help:
        assert command.short_help == COMMANDS[name][1]


def test_a_slip_of_the_finger(mgpt4: Mgpt4) -> None:
    ended = mgpt4("sumbit")
    assert ended.code == 2
    assert "Did you mean 'submit'?" in ended.err


HEAVY = ("torch", "transformers", "timm", "torchvision", "tensorboard", "webdataset", "numpy")

PROBE = """
import sys
from mgpt4_hpc.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as leave:
    code = leave.code or 0
else:
    code = 0
loaded = [name for name in {heavy!r} if name in sys.modules]
print("LOADED", loaded, "CODE", code, file=sys.stderr)
"""

DRY_RUN = ("submit", "--config", "tiny.yaml", "--executor", "local", "--dry-run")


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("submit", "--help"),
        DRY_RUN,
        ("status",),
        ("usage",),
        ("doctor", "--help"),
        ("drill", "--help"),
        ("config", "keys"),
    ],
)
def test_light_commands_import_nothing_heavy(
    world: TinyWorld, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    world.write_config(tmp_path / "tiny.yaml", 1)
    done = subprocess.run(
        [sys.executable, "-c", PROBE.format(heavy=HEAVY), *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.splitlines()[-1] == "LOADED [] CODE 0", done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("redirection", "code", "told"),
    [
        ("> /dev/full", 1, "error: what is printed: No space left on device\n"),
        (">&-", 0, ""),
        ("2>&- > /dev/full", 1, ""),
        ("<&- >&- 2>&-", 0, ""),
    ],
)
def test_streams_that_are_full_or_closed(redirection: str, code: int, told: str) -> None:
    done = subprocess.run(
        ["sh", "-c", f"'{sys.executable}' -m mgpt4_hpc.cli.main config keys {redirection}"],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (code, "", told)


@pytest.mark.slow
def test_a_question_that_nobody_can_answer_is_a_no(tmp_path: Path) -> None:
    made = make_run(tmp_path / "runs")
    command = [sys.executable, "-m", "mgpt4_hpc.cli.main", "rm", "one", "--runs-dir", "runs"]
    done = subprocess.run(
        ["/bin/sh", "-c", f"{shlex.join(command)} <&-"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": "/nowhere"},  # where no Slurm is installed
    )
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr
    assert made.path.exists()

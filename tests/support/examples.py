"""The examples of ``docs/cli.md``, run as their readers would type them.

A test says with :func:`executes` which lines it runs, so that a line that nobody runs is found, and
runs them with a :class:`Shell` or in its own process (:func:`parse`). What a line names has to be
there: the only words that change are absolute folders, which become folders of the test.
"""

from __future__ import annotations

import fcntl
import functools
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import make_cli_docs
import pytest

from tests.support.runs import patience

ABSOLUTE = ("/data/", "/scratch/")
"""Folders of the examples that a test has elsewhere."""
EXECUTED: dict[str, str] = {}
"""Each line that a test runs, and which."""
_RAN: set[str] = set()


def _all_lines() -> Iterator[tuple[str, str]]:
    for words, command in make_cli_docs.commands():
        for block in make_cli_docs.examples(command):
            for line in re.sub(r"\s*\\\n\s*", " ", block).splitlines():
                yield line.strip(), " ".join(words)


LINES: dict[str, str] = dict(_all_lines())
"""Each line of the examples, and the command that it belongs to."""


def lines_of(*commands: str) -> list[str]:
    """The lines of these commands' examples."""
    return [line for line, command in LINES.items() if command in commands]


def executes(*lines: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test that runs these lines; it fails if it did not."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        for line in lines:
            assert line in LINES, f"docs/cli.md has no line {line!r}"
            EXECUTED[line] = test.__qualname__

        @functools.wraps(test)
        def checked(*arguments: Any, **named: Any) -> None:
            test(*arguments, **named)
            assert not (left_out := set(lines) - _RAN), f"not run: {left_out}"

        return checked

    return decorate


def each_executes(*sequences: list[str]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A test that runs one of these sequences of lines at a time, given to it as ``lines``."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        executes(*(line for lines in sequences for line in lines))(test)

        @pytest.mark.parametrize("lines", sequences, ids=lambda lines: LINES[lines[0]])
        @functools.wraps(test)
        def checked(*arguments: Any, lines: list[str], **named: Any) -> None:
            test(*arguments, lines=lines, **named)
            assert set(lines) <= _RAN

        return checked

    return decorate


def has_run(line: str) -> None:
    """Note that this line was run, by this process or by another of xdist's workers."""
    assert line in LINES, f"docs/cli.md has no line {line!r}"
    _RAN.add(line)


def placed(line: str, folder: Path) -> str:
    """The line with the absolute folders under ``folder``."""
    has_run(line)
    names = "|".join(map(re.escape, ABSOLUTE))
    return re.sub(rf"(?<=[\s=])({names})", lambda found: f"{folder}{found[1]}", line)


@dataclass(frozen=True)
class Words:
    """A line taken apart, for a test that calls the command line in its own process.

    Attributes:
        arguments: of ``mgpt4``.
        stdin: what an ``echo`` before it writes.
        stdout: the file after ``>``.
    """

    arguments: list[str]
    stdin: str = ""
    stdout: str | None = None


def parse(line: str, folder: Path) -> Words:
    """The words of a line that needs no shell but for an ``echo ... |`` or a ``> FILE``."""
    words = shlex.split(placed(line, folder))
    stdin, stdout = "", None
    if words[0] == "echo":
        end = words.index("|")
        stdin, words = " ".join(words[1:end]) + "\n", words[end + 1 :]
    if ">" in words:
        *words, _, stdout = words
    program, *arguments = words
    assert program == "mgpt4" and not {"|", "&", ">>", ";"} & set(arguments), line
    return Words(arguments, stdin, stdout)


class Shell:
    """A folder of one's own in which lines are typed.

    Args:
        folder: where they are typed; /data and the like are folders in it.
        environ: added to the environment.
    """

    def __init__(self, folder: Path, environ: Mapping[str, str]) -> None:
        self.folder = folder
        self.environ = {"USER": "reader", "OMP_NUM_THREADS": "1", **environ}
        for name in ABSOLUTE:
            (folder / name.strip("/")).mkdir(exist_ok=True)
        (folder / "scratch" / self.environ["USER"]).mkdir(exist_ok=True)

    def start(self, line: str, stdin: int = subprocess.DEVNULL, *, terminal: bool = False) -> Typed:
        """Type a line and go on; with ``terminal`` on one, which it reads from and writes to."""
        return Typed(placed(line, self.folder), self, stdin, terminal=terminal)

    def run(self, line: str, code: int = 0, timeout_s: float = 120) -> Typed:
        """Type a line and wait for its end, which must be this exit code."""
        typed = self.start(line)
        typed.ends(code, timeout_s)
        return typed

    def say(self, line: str) -> str:
        """Type a line of the test's own; what it prints on stdout."""
        typed = Typed(line, self, subprocess.DEVNULL)
        typed.ends(0)
        return typed.out


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Typed:
    """A line that was typed: a process group of its own, as a shell's job is.

    Its output goes to files, so that it can be read while it grows.
    """

    def __init__(self, line: str, shell: Shell, stdin: int, *, terminal: bool = False) -> None:
        number = len(list(shell.folder.glob(".typed-*.out")))
        self._out = shell.folder / f".typed-{number}.out"
        self._err = shell.folder / f".typed-{number}.err"
        bin_folder = Path(sys.executable).parent
        search = shell.environ.get("PATH", os.environ["PATH"])
        self._screen: int | None = None
        with ExitStack() as stack:
            out: Any = stack.enter_context(self._out.open("wb"))
            err = stack.enter_context(self._err.open("wb"))
            if terminal:
                self._screen, out = pty.openpty()
                stdin = out
                stack.callback(os.close, out)
            self.process = subprocess.Popen(
                ["bash", "-o", "pipefail", "-c", line],
                cwd=shell.folder,
                env={**os.environ, **shell.environ, "PATH": f"{bin_folder}:{search}"},
                stdin=stdin,
                stdout=out,
                stderr=err,
                start_new_session=True,
                preexec_fn=_take_terminal if terminal else None,
            )
        if terminal:
            threading.Thread(target=self._copy_screen, daemon=True).start()
        self.line = line

    def _copy_screen(self) -> None:
        assert self._screen is not None
        with self._out.open("ab", buffering=0) as file:
            try:
                while shown := os.read(self._screen, 4096):
                    file.write(shown)
            except OSError:
                pass  # whoever wrote to it has ended

    @property
    def out(self) -> str:
        """What it has printed on stdout so far."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """What it has printed on stderr so far."""
        return self._err.read_text()

    def ends(self, code: int, timeout_s: float = 120) -> None:
        """Wait for its end, which must be this exit code and without a traceback."""
        try:
            ended = self.process.wait(timeout_s * patience())
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"{self.line}: no end\n{self.out}{self.err}") from None
        assert ended == code, f"{self.line} ended with {ended}\n{self.out}{self.err}"
        assert "Traceback" not in self.err, self.err

    def interrupt(self) -> None:
        """Press Ctrl-C, or do what that does."""
        if self._screen is not None:
            os.write(self._screen, b"\x03")
        else:
            os.killpg(self.process.pid, signal.SIGINT)

    def kill(self) -> None:
        """End it in any case."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

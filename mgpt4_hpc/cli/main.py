"""The ``mgpt4`` command: a table of subcommands, each imported only when it is called."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from mgpt4_hpc import __version__
from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.formatting import printable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("site.demo", "Train both stages on the shipped toy world, preemption included."),
    "submit": ("runs.submit", "Submit a stage, or both, to Slurm or to this machine."),
    "status": ("runs.status", "What each run is doing."),
    "history": ("runs.history", "The attempts of a run, and why each ended."),
    "usage": ("runs.usage", "GPU-hours of runs: useful, replayed, waiting, and so on."),
    "doctor": ("site.doctor", "What this site will do to a run, and which settings to use."),
    "drill": ("site.drill", "Prove that a preempted run comes back here, bit by bit."),
    "logs": ("runs.logs", "Print or follow a run's log."),
    "cancel": ("runs.cancel", "Cancel a run's job."),
    "resume": ("runs.resume", "Submit an unfinished run again."),
    "keep": ("runs.keep", "Bring back runs that should be at work and are not."),
    "ls": ("runs.status", "List the runs."),
    "rm": ("runs.rm", "Delete runs that are over."),
    "tensorboard": ("runs.tensorboard", "Show the curves of runs in a browser."),
    "config": ("site.config", "Presets and settings."),
    "data": ("data.group", "Shards and their index."),
    "weights": ("model.weights", "Fetch, import, export and check weights."),
    "eval": ("model.eval", "Measure what a trained model says about images."),
    "compare": ("model.compare", "Checkpoints on the same images, with intervals."),
    "report": ("runs.report", "A run's curves and attempts as a picture and a page."),
    "chat": ("model.chat", "Talk with a trained model about images."),
    "serve": ("model.serve", "A web page and an API to talk with a trained model about images."),
    "train": ("runs.train", "Train without a scheduler, in this process."),
    "version": ("site.version", "Versions of all that matters here."),
    "completion": ("site.completion", "Completion for bash, zsh or fish."),
}
"""Name to (module of this package, one line of help)."""

COMPLETE_VARIABLE = "_MGPT4_COMPLETE"
"""Set while a shell asks for completions; click derives it from the program's name."""


class LazyGroup(click.Group):
    """Knows its commands by name and help line, and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table: the order in which a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command's module. Its attribute is named like the command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"mgpt4_hpc.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        if COMPLETE_VARIABLE in os.environ:
            from mgpt4_hpc.cli.shared.completion import add_completion

            add_completion(command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the table without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names from the table, for a shell's TAB: click would import every command."""
        from click.shell_completion import CompletionItem

        items = [
            CompletionItem(name, help=line)
            for name, (_, line) in COMMANDS.items()
            if name.startswith(incomplete)
        ]
        return [*items, *click.Command.shell_complete(self, ctx, incomplete)]

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click, but naming the nearest command in its error."""
        import difflib

        name = args[0] if args else ""
        if name and name not in COMMANDS and not name.startswith("-"):
            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            ctx.fail(f"No such command {name!r}.{hint}")
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mgpt4")
def cli() -> None:
    """Train MiniGPT-4's two alignment stages on a Slurm cluster; a preempted run comes back."""


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point: run a command, and turn our errors into a sentence and an exit code."""
    _open_closed_streams()
    if os.path.expanduser("~") == "~":  # noqa: PTH111 - Path.home() raises, and this asks the same
        os.environ["HOME"] = "/"  # as login does for a user id without an entry in passwd
    try:
        # Without standalone mode, click returns the code of a ctx.exit(); commands return nothing.
        arguments = None if argv is None else list(argv)
        code = cli.main(args=arguments, prog_name="mgpt4", standalone_mode=False)
        sys.stdout.flush()  # here, where a full disk is reported, and not as Python ends
        sys.exit(code if isinstance(code, int) else 0)
    except click.Abort:
        click.echo("aborted", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MgptError as error:
        click.echo(f"error: {printable(str(error))}", err=True)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # `mgpt4 logs | head`: the reader left, which is no fault of ours.
        _give_up_output()
        sys.exit(0)
    except OSError as error:
        # A folder that may not be searched, a full disk behind stdout, a name that is too long.
        place = "what is printed" if error.filename is None else printable(str(error.filename))
        _give_up_output()
        click.echo(f"error: {place}: {error.strerror or error}", err=True)
        sys.exit(MgptError.exit_code)


def _give_up_output() -> None:
    """What is still to be written would fail again as Python ends."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed_streams() -> None:
    """Stand-ins for stdin, stdout and stderr where a caller closed them (``mgpt4 ls >&-``).

    The next file to be opened would get the number, and what is printed would end up in it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            handle = os.open(os.devnull, os.O_RDWR)
            if handle != number:
                os.dup2(handle, number)
                os.close(handle)
            setattr(sys, name, open(number, "w" if number else "r", closefd=False))  # noqa: SIM115


def raise_all(errors: Sequence[MgptError]) -> None:
    """Print errors in their order and end with the exit code of the first, if there are any."""
    for error in errors[:-1]:
        click.echo(f"error: {printable(str(error))}", err=True)
    if errors:
        errors[-1].exit_code = errors[0].exit_code
        raise errors[-1]


def say(text: str) -> None:
    """Print ``text`` on stderr, beside the result on stdout."""
    click.echo(text, err=True)


def echo_json(value: Any) -> None:
    """Print ``value`` as JSON on stdout."""
    import json

    click.echo(json.dumps(value, indent=2, sort_keys=True, default=str))


if __name__ == "__main__":
    main()

"""``mgpt4 completion``: what a shell needs to complete commands, options and names of runs."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from mgpt4_hpc.cli.main import cli

_VARIABLE = "_MGPT4_COMPLETE"
"""Click derives it from the program's name."""


@click.command("completion", short_help="Completion for bash, zsh or fish.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the lines that let a shell complete commands, options and the names of runs.

    \b
    bash  echo 'eval "$(mgpt4 completion bash)"' >> ~/.bashrc
    zsh   echo 'eval "$(mgpt4 completion zsh)"' >> ~/.zshrc
    fish  mgpt4 completion fish > ~/.config/fish/completions/mgpt4.fish

    Then press TAB, as in `mgpt4 logs st<TAB>`. Names of runs come from MGPT4_RUNS_DIR.

    \b
    mgpt4 completion bash
    """
    made = get_completion_class(shell)
    assert made is not None  # these three come with click
    completion = made(cli, {}, "mgpt4", _VARIABLE)
    # Not source(): bash's asks the bash of this machine for its version first.
    click.echo(completion.source_template % completion.source_vars())

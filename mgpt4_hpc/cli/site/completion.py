"""``mgpt4 completion``: what a shell needs to complete commands, options and values."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from mgpt4_hpc.cli.main import COMPLETE_VARIABLE, cli


@click.command("completion", short_help="Completion for bash, zsh or fish.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion_command(shell: str) -> None:
    """Print the lines that let a shell complete commands, options and their values.

    \b
    bash  echo 'eval "$(mgpt4 completion bash)"' >> ~/.bashrc
    zsh   echo 'eval "$(mgpt4 completion zsh)"' >> ~/.zshrc
    fish  mgpt4 completion fish > ~/.config/fish/completions/mgpt4.fish

    Then press TAB, as in `mgpt4 logs st<TAB>` or `mgpt4 submit --set train.l<TAB>`. Values are
    runs (of MGPT4_RUNS_DIR), presets, sites, partitions, settings and their choices.

    \b
    mgpt4 completion bash
    """
    made = get_completion_class(shell)
    assert made is not None  # these three come with click
    completion = made(cli, {}, "mgpt4", COMPLETE_VARIABLE)
    # Not source(): bash's asks the bash of this machine for its version first.
    click.echo(completion.source_template % completion.source_vars())
    if shell == "bash":
        # Or bash takes the = of --set KEY=VALUE for the end of a word, and offers no values.
        click.echo("COMP_WORDBREAKS=${COMP_WORDBREAKS//=}")

"""How a module's own command ends: our errors as a sentence and an exit code."""

from __future__ import annotations

import sys

import click

from mgpt4_hpc.errors import MgptError


def run_command(command: click.Command) -> None:
    """Run ``command`` on this process's arguments; leaves by exit where it fails."""
    try:
        command.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MgptError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)

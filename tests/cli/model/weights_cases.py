"""What several test files share."""

from __future__ import annotations

from click.testing import CliRunner, Result

from mgpt4_hpc.cli.model.weights import weights_command


def call(*arguments: object) -> Result:
    return CliRunner().invoke(weights_command, [str(a) for a in arguments], catch_exceptions=False)

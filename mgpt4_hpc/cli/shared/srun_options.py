"""``--slurm``: the same command on a GPU node."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from mgpt4_hpc.cli.shared.options import (
    DurationMin,
    refuse_without_slurm,
    together,
    without_options,
)
from mgpt4_hpc.errors import SlurmRejected

F = TypeVar("F", bound=Callable[..., Any])

slurm_options: Callable[[F], F] = together(
    click.option("--slurm", is_flag=True, help="Run on a GPU node, through srun."),
    click.option("--partition", help="With --slurm: the partition."),
    click.option(
        "--time",
        "time_min",
        type=DurationMin(),
        default=60,
        help="With --slurm: time limit. [1:00:00]",
    ),
    click.option("--gpus", type=click.IntRange(0), default=1, help="With --slurm: GPUs. [1]"),
    click.option("--srun", multiple=True, metavar="OPTION", help="With --slurm: option of srun."),
)
"""--slurm and its companions; ``split_slurm`` takes them."""

_OTHER_GPUS = {"--gres", "--gpus", "-G", "--gpus-per-node", "--gpus-per-task"}
"""Options of srun that ask for other GPUs than ``--gpus``."""
_OTHER_PLACE = ("--partition", "-p", "--jobid", "--clusters", "-M", "--time", "-t")
"""How options of srun begin that choose another partition, time or cluster than is looked at."""

_TAKES_VALUE = {"--partition", "--time", "--gpus", "--srun"}


@dataclass(frozen=True)
class NodeRequest:
    """What ``--slurm`` and its companions said.

    Attributes:
        wanted: whether to go there at all.
        partition, gpus, time_min, extra: as ``launch.slurm.srun.srun_command`` takes them.
    """

    wanted: bool
    partition: str | None
    gpus: int
    time_min: int
    extra: tuple[str, ...]


def split_slurm(options: Mapping[str, Any]) -> tuple[NodeRequest, dict[str, Any]]:
    """The options above as one value, and the rest."""
    rest = dict(options)
    if not rest["slurm"]:
        refuse_without_slurm()
    node = NodeRequest(
        wanted=rest.pop("slurm"),
        partition=rest.pop("partition"),
        gpus=rest.pop("gpus"),
        time_min=rest.pop("time_min"),
        extra=rest.pop("srun"),
    )
    return node, rest


def require_admission(partition: str | None, *, gpus: int, time_min: int) -> None:
    """Refuse a task that no node of its partition can hold.

    Raises:
        SlurmRejected: with every reason and the valid values.
        SlurmUnreachable: if Slurm does not answer.
    """
    from mgpt4_hpc.launch.slurm.commands import has_scontrol
    from mgpt4_hpc.launch.submit.preflight_slurm import task_faults

    if not has_scontrol():
        return
    if faults := task_faults(partition, gpus=gpus, time_min=time_min):
        raise SlurmRejected("Slurm would refuse this: " + "; ".join(faults))


def go_to_node(
    node: NodeRequest,
    context: click.Context,
    *,
    terminal: bool,
    check: Callable[[], object],
) -> None:
    """Become the srun that runs this very command line, without ``--slurm``.

    Args:
        node: where.
        context: of the running command.
        terminal: attach a pseudo terminal, which mixes stdout and stderr.
        check: looks at what the command names, before it waits for a node.

    Raises:
        SlurmUnreachable: if there is no srun, or Slurm does not answer.
        SlurmRejected: if no node could run it.
        MgptError: as ``check``.
    """
    from mgpt4_hpc.launch.slurm.srun import become, require_srun, srun_command

    require_srun()
    words = {word.partition("=")[0] for word in node.extra}
    # Inside an allocation srun starts a step on the nodes of that allocation.
    if "SLURM_JOB_ID" not in os.environ and not any(w.startswith(_OTHER_PLACE) for w in words):
        require_admission(
            node.partition or os.environ.get("SLURM_PARTITION"),
            gpus=0 if words & _OTHER_GPUS else node.gpus,
            time_min=node.time_min,
        )
    check()

    arguments = without_options(sys.argv[1:], _TAKES_VALUE, {"--slurm"})
    assert context.info_name in arguments
    become(
        srun_command(
            arguments,
            partition=node.partition,
            gpus=node.gpus,
            time_min=node.time_min,
            extra=node.extra,
            terminal=terminal,
        )
    )

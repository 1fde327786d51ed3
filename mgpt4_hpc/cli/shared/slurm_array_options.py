"""``--slurm`` and ``--part``: the same command as a Slurm array."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.shared.options import (
    DurationMin,
    refuse_without_slurm,
    sbatch_pairs,
    together,
    without_options,
)
from mgpt4_hpc.cli.shared.srun_options import require_admission
from mgpt4_hpc.launch.side_jobs.array import (
    SUBMITTED_FILE,
    ArrayJob,
    Wants,
    submit_once,
    wait_for_array,
)

F = TypeVar("F", bound=Callable[..., Any])
Part = tuple[int, int]
"""(I, N): part I of 1 ... N."""


class PartOf(click.ParamType):  # type: ignore[type-arg]  # generic from click 8.3 on
    """``I/N``, from 1."""

    name = "I/N"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Part:
        """The two numbers."""
        if isinstance(value, tuple):
            return value
        first, slash, last = str(value).partition("/")
        if not (slash and first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
            self.fail(f"{value!r} is no part: write I/N, as 3/16", param, ctx)
        return int(first), int(last)


@dataclass(frozen=True)
class Array:
    """What ``--slurm`` and its companions said.

    Attributes:
        wanted: whether to submit at all.
        parts: tasks, at most.
        wait: stay until all parts are done.
        wants: what each task asks for.
    """

    wanted: bool
    parts: int
    wait: bool
    wants: Wants


_TAKES_VALUE = ("--parts", "--gpus", "--partition", "--account", "--time", "--at-once", "--sbatch",
                "--part")  # fmt: skip
_FLAGS = ("--slurm", "--no-wait", "--json")


def array_options(*, parts: int, time_min: int, by_gpu: bool = False) -> Callable[[F], F]:
    """--slurm with its companions and --part; defaults of parts and of minutes for each.

    With ``by_gpu`` the parts are given as --gpus: each has one, and with 0 a single part has none.
    """
    number = (
        click.option(
            "--gpus",
            type=click.IntRange(0),
            default=parts,
            help=f"With --slurm: GPUs, a task on each. [{parts}]",
        )
        if by_gpu
        else click.option(
            "--parts",
            type=click.IntRange(1),
            default=parts,
            help=f"With --slurm: tasks, at most. [{parts}]",
        )
    )
    return together(
        click.option("--slurm", is_flag=True, help="Run in parts, as a Slurm array."),
        number,
        click.option("--partition", help="With --slurm: the partition."),
        click.option("--account", help="With --slurm: the account."),
        click.option(
            "--time",
            "time_min",
            type=DurationMin(),
            default=time_min,
            help=f"With --slurm: time limit of a task. [{time_min // 60}:{time_min % 60:02d}:00]",
        ),
        click.option(
            "--at-once", type=click.IntRange(1), help="With --slurm: tasks at the same time."
        ),
        click.option(
            "--sbatch", multiple=True, metavar="KEY=VALUE", help="With --slurm: option of sbatch."
        ),
        click.option("--no-wait", is_flag=True, help="With --slurm: return once it is submitted."),
        click.option("--part", type=PartOf(), help="Do part I of N only, as a task of an array."),
    )


def split_array(options: Mapping[str, Any], *, cpus: int, gpus: int = 0) -> tuple[Array, Any]:
    """The options above, but for ``part``, as one value; and the rest."""
    rest = dict(options)
    pairs = sbatch_pairs(rest.pop("sbatch"))
    wanted, wait = rest.pop("slurm"), not rest.pop("no_wait")
    if not wanted:
        refuse_without_slurm()
    if (parts := rest.pop("parts", None)) is None:
        number = rest.pop("gpus")
        parts, gpus = max(1, number), min(1, number)
    wants = Wants(
        partition=rest.pop("partition"),
        account=rest.pop("account"),
        time_min=rest.pop("time_min"),
        at_once=rest.pop("at_once"),
        cpus=cpus,
        gpus=gpus,
        sbatch=pairs,
    )
    if wanted and rest.get("part"):
        raise click.UsageError("--part is what the tasks of --slurm do: give one of them")
    return Array(wanted, parts, wait, wants), rest


def run_array(
    array: Array,
    name: str,
    folder: Path,
    *,
    parts: int | None = None,
    merge: bool = False,
    options: Sequence[str] = (),
) -> str | None:
    """Run this very command line as an array in ``folder``, or wait for the one that does.

    Args:
        array: from ``split_array``.
        name: of the job.
        folder: for script, logs and marks.
        parts: if there is less to do than ``array.parts`` tasks.
        merge: under ``--no-wait``, submit the command line once more, without ``--part``, to put
            the parts together when they are done.
        options: added to the command line.

    Returns:
        With ``--no-wait`` the id of the last job; else None, when all parts have ended well.

    Raises:
        MgptError: as ``launch.array``.
    """
    from mgpt4_hpc.cli.shared.progress import progress

    wants = array.wants
    # An array that was submitted before may be at work, though nothing starts there any more.
    if not (folder / SUBMITTED_FILE).exists() and not {"clusters", "time"} & set(wants.sbatch):
        require_admission(
            wants.sbatch.get("partition", wants.partition) or os.environ.get("SBATCH_PARTITION"),
            gpus=0 if {"gres", "gpus", "gpus-per-task"} & set(wants.sbatch) else wants.gpus,
            time_min=wants.time_min,
        )
    arguments = with_options(without_options(sys.argv[1:], _TAKES_VALUE, _FLAGS), options)
    parts = min(array.parts, parts or array.parts)
    job = ArrayJob(name, arguments, parts, folder, array.wants)
    following = arguments if merge and not array.wait else None
    submitted = submit_once(job, following)
    job, job_id = submitted.job, submitted.job_id
    what = "has the work already" if submitted.joined else f"logs {job.log(1).with_name('*.log')}"
    click.echo(f"job {job_id}, {job.parts} parts: {what}", err=True)
    if not array.wait:
        return submitted.following_id if merge else job_id
    try:
        with progress(name, "parts") as on_progress:
            wait_for_array(job, job_id, on_progress=on_progress)
    except KeyboardInterrupt:
        click.echo(f"job {job_id} goes on without you; to end it: scancel {job_id}", err=True)
        raise
    return None


def echo_submitted(
    job_id: str, as_json: bool, then: str = "this command without --slurm reports"
) -> None:
    """Print the id of an array's last job; ``then`` says what to do when it is done."""
    if as_json:
        echo_json({"job_id": job_id})
    else:
        click.echo(f"job {job_id}; when it is done, {then}")


def with_options(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """A command line with further options: before a ``--``, behind which all are names."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return [*arguments[:end], *options, *arguments[end:]]

"""``mgpt4 tensorboard``: the curves of runs in a browser, here or on a node."""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from mgpt4_hpc.cli.main import echo_json, say
from mgpt4_hpc.cli.shared.options import (
    DurationMin,
    absolute,
    complete_runs,
    json_option,
    runs_dir_option,
    sbatch_pairs,
)
from mgpt4_hpc.errors import NoSuchRun
from mgpt4_hpc.formatting import counted
from mgpt4_hpc.identity import user_name
from mgpt4_hpc.run_dir import FIX_NO_RUNS, RunDir, list_runs, told_no_runs


@click.command("tensorboard", short_help="Show the curves of runs in a browser.")
@click.argument("names", metavar="[RUN]...", nargs=-1, shell_complete=complete_runs)
@click.option("--port", type=click.IntRange(1, 65535), help="Listen here. [first free from 6006]")
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; 0.0.0.0 lets everybody in the network look.",
)
@click.option("--slurm", is_flag=True, help="Run it as a job, and not on this machine.")
@click.option("--partition", help="With --slurm: the partition.")
@click.option("--account", help="With --slurm: the account.")
@click.option(
    "--time",
    "time_min",
    type=DurationMin(),
    default=480,
    help="With --slurm: time limit. [8:00:00]",
)
@click.option(
    "--sbatch", multiple=True, metavar="KEY=VALUE", help="With --slurm: option of sbatch."
)
@runs_dir_option
@json_option
def tensorboard_command(
    names: tuple[str, ...],
    port: int | None,
    host: str,
    slurm: bool,
    runs_dir: Path,
    as_json: bool,
    **job: Any,
) -> None:
    """Show the curves of all runs, or of those named, until Ctrl-C.

    A sweep's name stands for all of its runs.

    Prints the ssh line that brings the page to your own machine. It listens on the loopback
    address, which other users of the same machine can reach too: TensorBoard has no password. With
    --slurm it runs as a job, and this command returns once it is up.

    \b
    mgpt4 tensorboard
    mgpt4 tensorboard stage1-vicuna7b --port 6010
    mgpt4 tensorboard --slurm --partition cpu --time 4:00:00
    """
    from mgpt4_hpc.launch.runs.sweep_dir import chosen_runs

    runs_dir = absolute(runs_dir)
    runs = chosen_runs(names, runs_dir)
    if not runs:
        raise NoSuchRun(told_no_runs(runs_dir), fix=FIX_NO_RUNS)
    if slurm:
        _in_a_job(runs if names else (), port, host, runs_dir, as_json, **job)
        return
    # Without names, runs that begin later appear too.
    _here((lambda: runs) if names else partial(list_runs, runs_dir), port, host, as_json)


def _here(shown: Callable[[], list[RunDir]], port: int | None, host: str, as_json: bool) -> None:
    from mgpt4_hpc.launch.side_jobs.tensorboard import FIRST_PORT, TensorBoard, until_signalled
    from mgpt4_hpc.launch.side_jobs.tunnel import choose_port, tunnel_line

    with until_signalled():
        port = choose_port(host, port, FIRST_PORT)
        server = TensorBoard(shown, host, port)
        try:
            server.start()
            facts = {
                "url": f"http://localhost:{port}/",
                "tunnel": tunnel_line(host, port),
                "host": host,
                "node": socket.gethostname(),
                "port": port,
                "runs": [run.name for run in shown()],
                "job_id": None,
            }
            if as_json:
                echo_json(facts)
            else:
                _print(facts)
                click.echo("Ctrl-C ends it.", err=True)
            sys.stdout.flush()
            server.serve()
        finally:
            server.stop()


def _in_a_job(
    runs: Sequence[RunDir],
    port: int | None,
    host: str,
    runs_dir: Path,
    as_json: bool,
    *,
    sbatch: Sequence[str],
    **where: Any,
) -> None:
    from mgpt4_hpc.launch.side_jobs.tensorboard_job import (
        TensorBoardJob,
        submit_tensorboard,
        wait_until_up,
    )

    options = sbatch_pairs(sbatch)
    arguments = ["--json", "--host", host, "--runs-dir", str(runs_dir)]
    arguments += ["--port", str(port)] if port is not None else []
    # By path: a name may also be a path from here, and the job stands elsewhere.
    arguments += ["--", *(str(run.path) for run in runs)]
    log = runs_dir / ".tensorboard" / f"{time.strftime('%Y%m%d-%H%M%S')}-{user_name()}.log"
    job = TensorBoardJob(arguments, log, sbatch=options, **where)
    job_id = submit_tensorboard(job)
    end = f"to end it: scancel {job_id}"
    try:
        facts = wait_until_up(job, job_id, say=say)
    except KeyboardInterrupt:
        click.echo(f"job {job_id} goes on without you; {end}", err=True)
        raise
    facts["job_id"] = job_id
    if as_json:
        echo_json(facts)
        return
    _print(facts)
    click.echo(f"It is job {job_id} on {facts['node']}; {end}", err=True)


def _print(facts: dict[str, object]) -> None:
    from mgpt4_hpc.launch.side_jobs.tensorboard import OPENING

    runs = facts["runs"]
    assert isinstance(runs, list)
    click.echo(f"TensorBoard of {counted(len(runs), 'run')}: {facts['url']}{OPENING}")
    click.echo(f"on your own machine, first: {facts['tunnel']}")

"""``mgpt4 logs``: print or follow a run's log."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from mgpt4_hpc.cli.shared.options import absolute, complete_runs, runs_dir_option
from mgpt4_hpc.errors import ConfigError, MgptError, NoSuchRun
from mgpt4_hpc.formatting import printable, shell_word
from mgpt4_hpc.ownership import assert_owned
from mgpt4_hpc.run_dir import FIX_NO_RUNS, RunDir, list_runs, told_no_runs
from mgpt4_hpc.run_reference import find_run

_POLL_S = 0.5
_LOOK_EVERY_S = 5.0
"""Between two questions to Slurm while following."""


@click.command("logs", short_help="Print or follow a run's log.")
@click.argument("name", metavar="[RUN]", required=False, shell_complete=complete_runs)
@click.option("-f", "--follow", is_flag=True, help="Continue to print until the run is over.")
@click.option(
    "--rank", type=click.IntRange(min=0), default=0, show_default=True, help="Which task's log."
)
@click.option("--attempt", type=click.IntRange(min=1), help="That attempt only.")
@click.option("-n", "--lines", type=click.IntRange(min=0), help="Begin with the last N lines.")
@runs_dir_option
def logs_command(
    name: str | None,
    follow: bool,
    rank: int,
    attempt: int | None,
    lines: int | None,
    runs_dir: Path,
) -> None:
    """Print the log of a run's newest job, or follow it across requeues.

    Without RUN the newest run is taken. Attempts begin with a line that says `===`.

    \b
    mgpt4 logs -f
    mgpt4 logs stage1-vicuna7b --rank 3 --attempt 2
    """
    from mgpt4_hpc.launch.runs import logs

    run = _run(name, absolute(runs_dir))
    assert_owned(run.path)
    if attempt is not None:
        if follow:
            raise ConfigError("--attempt and --follow exclude each other", fix="leave one out")
        text = logs.attempt_bytes(run, rank, attempt)
        kept = text.splitlines(keepends=True)
        _write(b"".join(kept if lines is None else kept[len(kept) - min(lines, len(kept)) :]))
        return
    if follow:
        _follow(run, rank, lines)
        return
    log = logs.choose_log(run, rank)
    if log is None:
        raise MgptError(
            f"{run.name} has no log yet",
            fix=f"see what it waits for: mgpt4 status {shell_word(run.name)}",
        )
    reader = logs.Follower(log.path)
    if lines is not None:
        reader.skip_to_last_lines(lines)
    for chunk in reader.new_chunks():
        _write(chunk)


def _run(name: str | None, runs_dir: Path) -> RunDir:
    if name is not None:
        return find_run(name, runs_dir)
    runs = list_runs(runs_dir)
    if not runs:
        raise NoSuchRun(told_no_runs(runs_dir), fix=FIX_NO_RUNS)
    click.echo(f"log of {printable(runs[0].name)}", err=True)
    return runs[0]


def _follow(run: RunDir, rank: int, lines: int | None) -> None:
    from mgpt4_hpc.launch.runs.logs import Follower, choose_log
    from mgpt4_hpc.launch.runs.status import look_at_one

    reader: Follower | None = None
    told = ""
    look_at_next = 0.0
    over = False
    try:
        while True:
            log = choose_log(run, rank)
            if log is not None and (reader is None or reader.path != log.path):
                first = reader is None
                reader = Follower(log.path)
                if first and lines is not None:
                    reader.skip_to_last_lines(lines)
            if reader is not None:
                for chunk in reader.new_chunks():
                    _write(chunk)
            if over:
                return  # after one more look at the file, for its last lines
            if time.monotonic() >= look_at_next:
                look_at_next = time.monotonic() + _LOOK_EVERY_S
                seen = look_at_one(run)
                over = not (seen.state.is_live or seen.state == "unknown")
                news = seen.text.partition(" in ")[0]
                if news != told and (over or news not in ("running", "starting")):
                    click.echo(printable(f"{run.name}: {seen.text}"), err=True)
                told = news
                if over:
                    continue
            time.sleep(_POLL_S)
    except KeyboardInterrupt:
        return


def _write(data: bytes) -> None:
    # As it is: a log may hold a progress bar, or bytes that are no text.
    sys.stdout.flush()
    stream = getattr(sys.stdout, "buffer", None)
    if stream is None:
        sys.stdout.write(data.decode("utf-8", "replace"))
        sys.stdout.flush()
        return
    stream.write(data)
    stream.flush()

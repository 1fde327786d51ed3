"""``mgpt4 history``: the attempts of a run, why each ended, and where the time went."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from mgpt4_hpc.cli.main import echo_json
from mgpt4_hpc.cli.shared.options import absolute, complete_runs, json_option, runs_dir_option
from mgpt4_hpc.cli.shared.tables import print_rows
from mgpt4_hpc.formatting import duration, printable, shell_word
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.run_reference import find_run
from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.bad_nodes import BAD_NODE
from mgpt4_hpc.telemetry.event_kinds import RUNNING_CAUSE, UNKNOWN_CAUSE
from mgpt4_hpc.telemetry.goodput import UNACCOUNTED, Goodput, goodput
from mgpt4_hpc.telemetry.heartbeat import read_heartbeat
from mgpt4_hpc.telemetry.ledger import read_changes, read_ledgers
from mgpt4_hpc.telemetry.time_buckets import BADPUT, PRODUCTIVE


@click.command("history", short_help="The attempts of a run, and why each ended.")
@click.argument("name", metavar="RUN", shell_complete=complete_runs)
@runs_dir_option
@json_option
def history_command(name: str, runs_dir: Path, as_json: bool) -> None:
    """The attempts of a run, why each ended, what changed, and what share of the time trained.

    \b
    mgpt4 history stage1-vicuna7b
    """
    from mgpt4_hpc.launch.runs.run_facts import origin_of

    run = find_run(name, absolute(runs_dir))
    run.identity()
    attempts, changes = read_ledgers(run.ledger), read_changes(run.ledger)
    total = goodput(attempts)
    origin = origin_of(run)
    if as_json:
        echo_json(
            {
                "run": run.name,
                "path": str(run.path),
                "origin": origin,
                "attempts": [_plain_attempt(attempt) for attempt in attempts],
                "changes": [asdict(change) for change in changes],
                "goodput": asdict(total),
            }
        )
        return
    if origin:
        click.echo(printable(f"{run.name} {origin}"))
    if not attempts:
        see = f"`mgpt4 status {shell_word(run.name)}`"
        click.echo(printable(f"{run.name} has not started yet: see {see}"), err=True)
        return
    _print_attempts(run, attempts)
    for change in changes:
        click.echo(printable(str(change)))
    click.echo()
    _print_seconds(attempts)
    click.echo()
    click.echo(goodput_line(total))


def _plain_attempt(attempt: Attempt) -> dict[str, Any]:
    return {
        **asdict(attempt),
        "seconds": attempt.seconds,
        "from_step": attempt.restored_step,
        "to_step": attempt.last_step,
    }


def _print_attempts(run: RunDir, attempts: Sequence[Attempt]) -> None:
    rows = []
    several = len({attempt.cluster for attempt in attempts if attempt.cluster}) > 1
    for attempt in attempts:
        # A job that started no rank is known to its batch script alone.
        job = attempt.job_id or attempt.supervisor.get("job_id") or "-"
        job += f" on {attempt.cluster}" if several and attempt.cluster else ""
        job += f" restart {attempt.restart_count}" if attempt.restart_count else ""
        saves = str(attempt.saves)
        if attempt.save_failures:
            saves += f", {attempt.save_failures} failed"
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(attempt.start))
        nodes, start = ", ".join(attempt.nodes) or "-", started if attempt.start else "-"
        steps, ended = steps_of(attempt), ending_of(run, attempt)
        rows.append(
            (attempt.number, job, nodes, start, steps, ended, attempt.steps_replayed, saves)
        )
    columns = (">attempt", "job", "nodes", "start", ">steps", "ended", ">replayed", ">saves")
    print_rows(columns, rows, folding=("job", "nodes"))
    for attempt in attempts:
        for fault in attempt.faults:
            if fault.get("what") == BAD_NODE:
                told = f"attempt {attempt.number}: bad node {fault['node']}: {fault['reason']}"
                click.echo(told)


def steps_of(attempt: Attempt) -> str:
    """From which to which step it went; one that was refused before has none."""
    return f"{attempt.restored_step}-{attempt.last_step}" if attempt.last_step else "-"


def ending_of(run: RunDir, attempt: Attempt) -> str:
    """Why it ended; one that recorded no end runs, or was killed and shows no sign of life."""
    from mgpt4_hpc.launch.runs.run_state import SILENT_S

    beat = read_heartbeat(run.heartbeat)
    of_beat = beat.time if beat is not None and beat.attempt == attempt.number else 0.0
    last_sign = max(attempt.end, of_beat)
    silent_s = time.time() - last_sign
    if attempt.cause != RUNNING_CAUSE or silent_s < SILENT_S:
        return f"{attempt.cause} early" if attempt.early else attempt.cause
    # A power loss can leave a ledger without a line.
    return f"silent for {duration(silent_s)}" if last_sign else UNKNOWN_CAUSE


def _print_seconds(attempts: Sequence[Attempt]) -> None:
    # A purpose that never took a tenth of a second would be a column of zeros.
    shown = [
        name
        for name in (PRODUCTIVE, *BADPUT)
        if any(attempt.buckets.get(name, 0.0) >= 0.1 for attempt in attempts)
    ]
    headings = [name.replace("_", " ") for name in shown]
    rows = []
    for attempt in attempts:
        seconds = [attempt.buckets.get(name, 0.0) for name in shown]
        rows.append((attempt.number, *(f"{value:.1f}" for value in (*seconds, attempt.seconds))))
    columns = (">attempt", *(f">{heading}" for heading in headings), ">seconds")
    print_rows(columns, rows, folding=headings)


def goodput_line(total: Goodput) -> str:
    """The whole run's time in a sentence."""
    lost = sorted(
        (
            (total.seconds[name], name)
            for name in (*BADPUT, UNACCOUNTED)
            if total.seconds[name] >= 0.5
        ),
        reverse=True,
    )
    named = ", ".join(f"{name.replace('_', ' ')} {seconds:.0f} s" for seconds, name in lost)
    hours = sum(total.gpu_hours.values())
    held, of = ("ran", "process") if total.on_cpus else ("held its GPUs", "GPU")
    return (
        f"goodput {total.without_queue:.1%} of the time that it {held} "
        f"({total.with_queue:.1%} with the waits in the queue), {hours:.2f} {of} hours"
        + (f"; not training: {named}" if named else "")
    )

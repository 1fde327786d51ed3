"""Without a scheduler: ``torchrun --nproc-per-node N -m mgpt4_hpc.train --cfg-path FILE``."""

from __future__ import annotations

import os
import socket
import sys
import time
from pathlib import Path

import click

from mgpt4_hpc.config.assignments import read_assignments
from mgpt4_hpc.config.load import (
    Resolved,
    keep_schedule,
    load_config,
    settings_digest,
)
from mgpt4_hpc.config.missing_inputs import missing_start, unset_paths
from mgpt4_hpc.config.run_config_file import (
    new_run_facts,
    read_config,
    rewrite_config,
    write_config,
)
from mgpt4_hpc.data.sources.epochs import steps_of_epochs
from mgpt4_hpc.distributed import Ranks, collective_timeout_s, end_group, start_group
from mgpt4_hpc.errors import EXIT_RESUMABLE, ConfigError, MgptError, RunLocked
from mgpt4_hpc.ownership import assert_owned
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.train.entry import run_command
from mgpt4_hpc.train.inputs import pins
from mgpt4_hpc.train.lossy_stdout import tolerate_lost_output
from mgpt4_hpc.train.stopping.stop import SignalStop, log_signals, stop_signals


@click.command()
@click.option("--cfg-path", "config", required=True, help="Preset or YAML file.")
@click.option("--run-dir", type=click.Path(path_type=Path), help="Default: runs/NAME.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="Any setting.")
@click.option(
    "--accept-drift",
    is_flag=True,
    help="Continue with changed settings, data, weights or versions; the ledger records it.",
)
def command(
    config: str, run_dir: Path | None, assignments: tuple[str, ...], accept_drift: bool
) -> None:
    """Train one run, or resume it if its directory exists."""
    started_at = time.time()
    ranks = Ranks.from_environment(os.environ)
    # A device belongs to torchrun's ranks; the run's world is what torchrun made of it.
    settings, faults = read_assignments(assignments)
    overrides = {
        "launch.gpus": ranks.world_size,
        "launch.nodes": max(1, ranks.world_size // ranks.local_world_size),
        **settings,
    }
    resolved = load_config(
        config,
        overrides=overrides,
        faults=faults,
        environ=os.environ,
        convert_epochs=steps_of_epochs,
    )
    for note in resolved.notes if ranks.is_first else ():
        click.echo(note, err=True)
    # Here and not earlier: until now nothing has begun that a signal could damage. A Ctrl-C counts
    # as well, for this is a user's terminal.
    signals = stop_signals((*resolved.config.launch.stop_signals, "INT"))
    log_signals(signals, lambda line: print(line, flush=True))
    stop = SignalStop(signals).install()
    run = RunDir((run_dir or Path("runs") / resolved.config.name).absolute())
    sys.exit(_run(run, resolved, ranks, stop, started_at, accept_drift))


def _run(
    run: RunDir,
    resolved: Resolved,
    ranks: Ranks,
    stop: SignalStop,
    started_at: float,
    accept: bool,
) -> int:
    from mgpt4_hpc.train.device import choose_device
    from mgpt4_hpc.train.health.node_check import check_node
    from mgpt4_hpc.train.health.node_consensus import judge
    from mgpt4_hpc.train.run import run_training
    from mgpt4_hpc.train.state import Ending, Outcome

    tolerate_lost_output()
    # Each rank for itself: torchrun ends the others when one fails.
    try:
        run.path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MgptError(
            f"the folder {run.path.parent} cannot be made: {error.strerror}",
            fix="give --run-dir a place in a writable folder",
        ) from error
    place = run.path if run.path.is_dir() else run.path.parent
    if (unfit := judge([check_node(resolved.config, ranks, place)])) is not None:
        raise unfit
    timeout_s = collective_timeout_s(resolved.config.train.hang_timeout_s)
    start_group(ranks, choose_device(resolved.config, ranks), timeout_s=timeout_s)
    ranks.first_does(lambda: _create(run, resolved, accept))

    def end(outcome: Outcome, recorder: object) -> None:
        """Record how the attempt ended, and print how to continue."""
        from mgpt4_hpc.telemetry.event_kinds import Kind
        from mgpt4_hpc.train.recorder import Recorder

        assert isinstance(recorder, Recorder)
        finished = outcome.ending is Ending.FINISHED
        recorder.event(
            Kind.END,
            cause="finished" if finished else "signalled",
            step=outcome.step,
            exit_code=0 if finished else EXIT_RESUMABLE,
            **outcome.finished_at,
        )
        if not finished:
            recorder.say(
                f"stopped by {outcome.reason} at step {outcome.step}, which is saved; the same "
                f"command goes on from there (exit code {EXIT_RESUMABLE})"
            )

    claim = {
        "executor": "torchrun",
        "job_id": str(os.getppid()),
        "restart_count": int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")),
        "nodes": [socket.gethostname()],
    }
    outcome = run_training(run, ranks, stop, claim=claim, started_at=started_at, end=end)
    end_group()
    return 0 if outcome.ending is Ending.FINISHED else EXIT_RESUMABLE


def _create(run: RunDir, resolved: Resolved, accept: bool) -> None:
    if run.identity_file.exists():
        run.identity()
        assert_owned(run.path)
        stored = read_config(run.config_file)
        resolved = keep_schedule(stored.config, resolved, "run")
        same = settings_digest(stored.config) == settings_digest(resolved.config)
        if not same and not accept:
            raise RunLocked(
                f"the run {run.path} exists already, with other settings",
                why="a run goes on with what it began with",
                fix="leave the settings as they were, give another --run-dir, or --accept-drift",
            )
        if accept:
            pins.accept_drift(run)
        if stored.digest != resolved.digest:
            rewrite_config(run.config_file, resolved)
        return
    if faults := unset_paths(resolved.config) + missing_start(resolved.config):
        raise ConfigError("the settings are not complete", faults=faults)
    run.create(new_run_facts(resolved))
    write_config(run.config_file, resolved)


if __name__ == "__main__":
    run_command(command)

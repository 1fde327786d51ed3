"""Submitting a batch script, and sbatch's complaints as errors of ours."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from mgpt4_hpc.errors import MgptError, SlurmRejected, SlurmUnconfirmed, SlurmUnreachable
from mgpt4_hpc.formatting import first_line
from mgpt4_hpc.launch.slurm import commands

_COMPLAINTS = (
    ("feature", ("constraint",), "`sinfo -o '%P %f'` lists the features of each partition"),
    ("node name", ("exclude", "nodelist"), "`sinfo -N` lists the nodes"),
    (
        "node configuration",
        ("partition", "nodes", "gres", "gpus-per-node", "cpus-per-task", "mem", "constraint"),
        "no node has all of this at once: `sinfo -o '%P %D %c %m %G %f'` lists what they have",
    ),
    ("reservation", ("reservation",), "`scontrol show reservation` lists them"),
    ("license", ("licenses",), "`scontrol show license` lists them"),
)
"""Words of sbatch's complaints, the options that each is about, and how to list valid values."""

_ESTIMATE = re.compile(
    r"to start at (?P<start>\S+)"
    r"(?: (?:a job )?using (?P<processors>\d+) processors)?"
    r"(?: on nodes? (?P<nodes>\S+))?(?: in partition (?P<partition>\S+))?"
)
_ASKED = re.compile(r"^#SBATCH --([\w-]+)=(.*)$", re.MULTILINE)


def translate(message: str, script: str) -> MgptError:
    """Sbatch's complaint about a batch script as one of our errors, with what the script asks."""
    errors = [line for line in message.splitlines() if "error:" in line.lower()] or [message]
    text = "; ".join(line.strip() for line in errors)
    asked = dict(_ASKED.findall(script))
    if commands.may_have_arrived(message):
        return SlurmUnconfirmed(
            f"sbatch got no answer, so the job may have been accepted: {text}",
            why="without its id nobody can follow it, and a second job would take the run from it",
            fix=f"once Slurm answers, `squeue --me --name {asked.get('job-name', 'NAME')}` shows "
            "whether it is there: `scancel` it if so, then `mgpt4 resume` the run",
        )
    if commands.is_unreachable(message):
        return SlurmUnreachable(
            f"sbatch cannot reach Slurm: {text}",
            fix="the controller is down or overloaded: try again, or ask the cluster's support",
        )
    for word, options, fix in _COMPLAINTS:
        values = [f"--{name}={asked[name]}" for name in options if name in asked]
        if word in text.lower() and values:
            return SlurmRejected(f"sbatch refused the job: {text}: {' '.join(values)}", fix=fix)
    return SlurmRejected(
        f"sbatch refused the job: {text}", fix="see `sinfo` and `sacctmgr show assoc user=$USER`"
    )


def submit(
    words: Sequence[str],
    environ: Mapping[str, str] | None = None,
    timeout_s: float = commands.COMMAND_TIMEOUT_S,
) -> str:
    """Submit what sbatch takes: options, then a script and its arguments; the job's id.

    Raises:
        SlurmRejected, SlurmUnreachable: as Slurm says.
    """
    command = ["sbatch", "--parsable", *words]
    printed = commands.run_slurm(command, environ=environ, timeout_s=timeout_s)
    return printed.strip().partition(";")[0]


def refusal_of(options: Sequence[str]) -> str:
    """Why Slurm would refuse a job with these options; "" if it would take it. Submits nothing."""
    try:
        commands.run_slurm(["sbatch", "--test-only", "--wrap=true", *options])
    except MgptError as error:
        return first_line(error.what.partition("was refused: ")[2] or error.what)
    return ""


def estimate_start(script: str) -> dict[str, str | None]:
    """When and where Slurm would start a job with this script; submits nothing.

    Returns:
        ``start`` (local time as 2026-03-01T10:00:00), ``processors``, ``nodes`` and ``partition``;
        None where Slurm does not print it.

    Raises:
        SlurmRejected, SlurmUnreachable: as Slurm says.
    """
    with tempfile.TemporaryDirectory(prefix="mgpt4-") as folder:
        path = Path(folder) / "job.sbatch"
        path.write_text(script, encoding="utf-8")
        try:
            answer = commands.run_slurm(
                ["sbatch", "--test-only", str(path)],
                environ=commands.clean_environment(os.environ),
                with_stderr=True,
            )
        except SlurmRejected as error:
            raise translate(error.what, script) from error
    match = _ESTIMATE.search(answer)
    if match is None:
        raise SlurmUnreachable(f"sbatch --test-only cannot be understood: {answer.strip()!r}")
    return match.groupdict()


def submit_script(
    script: Path,
    options: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
    *,
    timeout_s: float = commands.COMMAND_TIMEOUT_S,
) -> str:
    """Submit a batch script as it is; its job's id.

    Args:
        script: the file.
        options: of sbatch, which override the script's own.
        environ: of the job, but for what an enclosing job has set.
        timeout_s: patience with Slurm.

    Raises:
        SlurmRejected, SlurmUnreachable: as Slurm says; SlurmUnconfirmed if it may have the job.
    """
    try:
        return submit([*options, str(script)], commands.clean_environment(environ), timeout_s)
    except (SlurmRejected, SlurmUnreachable) as error:
        if isinstance(error, SlurmRejected) or commands.may_have_arrived(error.what):
            raise translate(error.what, script.read_text(encoding="utf-8")) from error
        raise

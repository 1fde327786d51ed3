"""Questions to Slurm's own commands, and their answers as plain data.

Every command is run without a shell, with a time-out, and failures are distinguished: Slurm said
no (:class:`SlurmRejected`) or does not answer (:class:`SlurmUnreachable`).
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

from mgpt4_hpc.errors import ConfigError, SlurmRejected, SlurmUnreachable
from mgpt4_hpc.stop_signals import STOP_SIGNALS

COMMAND_TIMEOUT_S = 30.0
NO_SCONTROL = "warning: no scontrol on "
"""How a batch script's log begins its line about its node, where it found no ``scontrol``."""
_SHOWN_CHARS = 80
"""Most of a command that a message shows: squeue's list of columns alone is a line long."""

_UNREACHABLE = re.compile(
    r"unable to contact slurm controller|connection refused|communication connection failure"
    r"|socket timed out|unable to establish controller|connection timed out"
    r"|zero bytes were transmitted|message (?:send|receive) failure|communication shutdown"
    r"|transport endpoint is not connected|in standby mode|unable to resolve"
    r"|protocol authentication error|munge (?:en|de)code failed"
    r"|error: slurmdbd|resource temporarily unavailable|could not establish a configuration source",
    re.IGNORECASE,
)
_MAY_HAVE_ARRIVED = re.compile(
    r"socket timed out|zero bytes were transmitted|message receive failure|gave no answer within",
    re.IGNORECASE,
)
_STILL_RUNNING = frozenset({"SIGNALING", "RESIZING"})
"""What stands in RUNNING's place while Slurm delivers a signal or takes nodes away."""
_HELD_BACK = (*(signal.Signals[f"SIG{name}"] for name in STOP_SIGNALS), signal.SIGCONT)
_KEY = re.compile(r"(?:^|\s)([A-Za-z][\w/:]*)=")
_INHERITED = re.compile(r"^(SLURM_(?!CONF$|CONF_SERVER$|JWT$)|SBATCH_|SRUN_|SALLOC_|SUBMITIT_)")
"""All but where Slurm is and who we are there."""


def has_slurm() -> bool:
    """Whether this machine can submit to Slurm."""
    return shutil.which("sbatch") is not None


def log_pattern(path: Path) -> str:
    """A path as ``--output`` takes it literally.

    Raises:
        ConfigError: a backslash, which Slurm drops; the job would end before its first line.
    """
    if "\\" in str(path):
        raise ConfigError(
            f"{path} has a backslash in its path, which Slurm would drop",
            fix="choose a folder without one",
        )
    return str(path).replace("%", "%%")


def has_scontrol(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether Slurm can be asked about jobs here; in a container it mostly cannot."""
    return shutil.which("scontrol", path=environ.get("PATH")) is not None


def scontrol_folder() -> str:
    """Folder of this machine's ``scontrol``; "" without one, or if it is in every PATH anyway."""
    command = shutil.which("scontrol")
    folder = str(Path(command).absolute().parent) if command else ""
    return "" if folder in ("/bin", "/usr/bin", "/usr/local/bin") else folder


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """``environ`` without what an enclosing job would force upon a new one."""
    return {key: value for key, value in environ.items() if not _INHERITED.match(key)}


def run_slurm(
    command: Sequence[str],
    *,
    timeout_s: float = COMMAND_TIMEOUT_S,
    environ: Mapping[str, str] | None = None,
    with_stderr: bool = False,
    cluster: str = "",
) -> str:
    """Standard output of one Slurm command, run with ``environ`` if given.

    ``cluster`` names another cluster than this one, to be asked through slurmdbd. ``with_stderr``
    adds its standard error, where some commands write their answer.

    Raises:
        SlurmUnreachable: the command is missing, hangs, or cannot reach its daemon.
        SlurmRejected: the daemon answered with an error.
    """
    if cluster:
        command = [command[0], f"--clusters={cluster}", *command[1:]]
    command_text = shorten(" ".join(command), _SHOWN_CHARS, placeholder=" ...")
    _assert_conf(os.environ if environ is None else environ)
    try:
        with signals_held_back():
            done = subprocess.run(
                list(command),
                capture_output=True,
                encoding="utf-8",
                errors="replace",  # a job comment in another encoding is no reason to fail
                timeout=timeout_s,
                env=environ,
                check=False,
            )
    except FileNotFoundError:
        raise SlurmUnreachable(
            f"{command[0]} is not installed here",
            fix="log in to a submit node of the cluster, or use --executor local",
        ) from None
    except OSError as error:
        raise SlurmUnreachable(f"`{command_text}` cannot be started: {error}") from error
    except subprocess.TimeoutExpired as error:
        said = error.stderr or b""
        text = said if isinstance(said, str) else said.decode(errors="replace")
        hint = next((f": {line.strip()}" for line in text.splitlines() if line.strip()), "")
        raise SlurmUnreachable(
            f"`{command_text}` gave no answer within {timeout_s:.0f} s{hint}",
            fix="the controller is down or overloaded: try again, or ask the cluster's support",
        ) from None
    if done.returncode == 0:
        return done.stdout + (done.stderr if with_stderr else "")
    silent = f"it ended with code {done.returncode} and said nothing"
    message = (done.stderr or done.stdout).strip() or silent
    if is_unreachable(message):
        raise SlurmUnreachable(
            f"`{command_text}` cannot reach Slurm: {message}",
            fix="the controller is down or overloaded: try again, or ask the cluster's support",
        )
    raise SlurmRejected(f"`{command_text}` was refused: {message}")


def _assert_conf(environ: Mapping[str, str]) -> None:
    """Slurm's own commands wait a minute for this file to appear, and say nothing meanwhile."""
    conf = environ.get("SLURM_CONF")
    if conf and not os.access(conf, os.R_OK):
        raise SlurmUnreachable(
            f"SLURM_CONF is {conf}, which is no file that can be read",
            fix="unset SLURM_CONF, or set it to the cluster's slurm.conf",
        )


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Block the stop signals, also for children: Slurm signals every process of a step.

    The TERM that comes with a preemption or with our own requeue would kill the very scontrol
    that is asking about it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_BACK)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def is_unreachable(message: str) -> bool:
    """Whether a Slurm command's error says that its daemon does not answer."""
    return _UNREACHABLE.search(message) is not None


def may_have_arrived(message: str) -> bool:
    """Whether the daemon may have got the request, and carried it out, for all that it said."""
    return _MAY_HAVE_ARRIVED.search(message) is not None


def parse_record(line: str) -> dict[str, str]:
    """One line of ``scontrol show ... -o`` as a mapping. Values may hold spaces.

    The first of two equal keys counts: what looks like a second one is a user's comment.
    """
    keys = list(_KEY.finditer(line))
    record: dict[str, str] = {}
    for number, match in enumerate(keys):
        end = keys[number + 1].start() if number + 1 < len(keys) else len(line)
        record.setdefault(match.group(1), line[match.end() : end].strip())
    return record


def show_config(*, timeout_s: float = COMMAND_TIMEOUT_S) -> str:
    """The controller's settings, a line each. Raises SlurmUnreachable or SlurmRejected."""
    return run_slurm(["scontrol", "show", "config"], timeout_s=timeout_s)


def version() -> str:
    """As ``sbatch --version`` prints it. Raises SlurmUnreachable or SlurmRejected."""
    return run_slurm(["sbatch", "--version"], timeout_s=5).strip()


_CLUSTER = re.compile(r"^ClusterName\s*=\s*(\S+)", re.MULTILINE)
_names: dict[str, str] = {}
"""Name of the cluster by the configuration in use, once known."""


def cluster_name() -> str:
    """Name of the cluster that Slurm's commands speak to here; "" if it does not say."""
    conf = os.environ.get("SLURM_CONF", "")
    if conf not in _names:
        try:
            match = _CLUSTER.search(show_config())
        except (SlurmRejected, SlurmUnreachable):
            match = None
        if match is None:
            return ""
        _names[conf] = match[1]
    return _names[conf]


@dataclass(frozen=True)
class JobFacts:
    """What Slurm says of one job.

    Attributes:
        state: as RUNNING (also while it is signalled or resized), COMPLETING, PENDING, TIMEOUT.
        reason: Slurm's word for the state, as TimeLimit.
        restarts: how often it was requeued, by Slurm or a user.
        preempt_time: set while it is being preempted; UTC, as Slurm writes it.
        end_time: when this start ends or ended, the same.
        run_time_s: seconds since this start.
        time_limit_s: seconds allowed, None if unlimited.
        requeue_allowed: whether ``scontrol requeue`` may bring it back.
    """

    state: str
    reason: str
    restarts: int
    preempt_time: str | None
    end_time: str
    run_time_s: float
    time_limit_s: float | None
    requeue_allowed: bool


def job_record(job_id: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> dict[str, str]:
    """What the controller shows of a job, its times in UTC.

    Raises:
        SlurmUnreachable, SlurmRejected: it does not.
    """
    command = ["scontrol", "show", "job", "-o", job_id]
    # A user may like to see times written otherwise, and local ones are ambiguous when the clocks
    # go back.
    environ = {**os.environ, "SLURM_TIME_FORMAT": "standard", "TZ": "UTC"}
    return parse_record(run_slurm(command, timeout_s=timeout_s, environ=environ))


def job_facts(job_id: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> JobFacts:
    """Ask the controller about a job. Raises SlurmUnreachable or SlurmRejected."""
    record = job_record(job_id, timeout_s=timeout_s)
    try:
        return _read_facts(record)
    except ValueError as error:
        raise SlurmUnreachable(
            f"Slurm's answer about job {job_id} cannot be understood: {error}"
        ) from error


def _read_facts(record: Mapping[str, str]) -> JobFacts:
    preempted = record.get("PreemptTime", "None")
    state = record.get("JobState", "UNKNOWN")
    return JobFacts(
        state="RUNNING" if state in _STILL_RUNNING else state,
        reason=record.get("Reason", "None"),
        restarts=int(record.get("Restarts", "0")),
        preempt_time=None if preempted in ("None", "Unknown", "N/A", "") else preempted,
        end_time=record.get("EndTime", "Unknown"),
        run_time_s=parse_duration_s(record.get("RunTime", "")) or 0.0,
        time_limit_s=parse_duration_s(record.get("TimeLimit", "")),
        requeue_allowed=record.get("Requeue", "1") != "0",
    )


def parse_duration_s(text: str) -> float | None:
    """Seconds of ``[days-]hours:minutes:seconds`` and its short forms; None for UNLIMITED.

    The forms are sbatch's ``--time``: ``minutes``, ``minutes:seconds``,
    ``hours:minutes:seconds``, ``days-hours``, ``days-hours:minutes[:seconds]``.

    Raises:
        ValueError: if it is none of these.
    """
    text = text.strip()
    if text.upper() in ("", "UNLIMITED", "INFINITE", "PARTITION_LIMIT", "INVALID", "N/A", "NONE"):
        return None
    days, dash, rest = text.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if len(parts) > 3 or any(part < 0 for part in parts) or (dash and not days.isdigit()):
        raise ValueError(f"{text!r} is no duration")
    if dash:
        hours, minutes, seconds = (*parts, 0, 0)[:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:
        hours, (minutes, seconds) = 0, (*parts, 0)[:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def requeue(job_id: str, *, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
    """Put a running job back into the queue. Raises SlurmUnreachable or SlurmRejected."""
    run_slurm(["scontrol", "requeue", job_id], timeout_s=timeout_s)


def forbid_requeue(job_id: str, *, timeout_s: float = COMMAND_TIMEOUT_S, cluster: str = "") -> None:
    """Forbid every requeue of a job. Raises SlurmUnreachable or SlurmRejected."""
    command = ["scontrol", "update", f"JobId={job_id}", "Requeue=0"]
    run_slurm(command, timeout_s=timeout_s, cluster=cluster)


def cancel(job_id: str, *, cluster: str = "", or_over: bool = False) -> None:
    """End a job; ``or_over``: one that ended already is no error.

    Raises:
        SlurmUnreachable, SlurmRejected: as Slurm says.
    """
    run_slurm(["scancel", *(["--quiet"] if or_over else []), job_id], cluster=cluster)


def signal_ranks(job_id: str, name: str, *, cluster: str = "") -> None:
    """Send a signal to a job's ranks. Raises SlurmUnreachable or SlurmRejected.

    Without --batch or --full it goes to the ranks alone, and not to the batch script.
    """
    run_slurm(["scancel", f"--signal={name}", job_id], cluster=cluster)


def partition_names(*, timeout_s: float = COMMAND_TIMEOUT_S) -> list[str]:
    """Names of all partitions, sorted, by sinfo, which is quick."""
    return sorted(
        set(run_slurm(["sinfo", "--noheader", "--format=%R"], timeout_s=timeout_s).split())
    )


def node_address(node: str) -> str:
    """Address of a node as Slurm knows it; its name need not resolve."""
    record = parse_record(run_slurm(["scontrol", "show", "node", "-o", node]))
    return record.get("NodeAddr") or node


def hostnames(listed: str) -> list[str]:
    """``node[1-2],x7`` as names; whether there are such nodes is not asked."""
    return run_slurm(["scontrol", "show", "hostnames", listed]).split()


def first_node(environ: Mapping[str, str] = os.environ) -> str:
    """Name of the job's first node."""
    return hostnames(environ["SLURM_JOB_NODELIST"])[0]

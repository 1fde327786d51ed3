"""A running test cluster as an object: submit, look, wait, clean up.

Everything goes through Slurm's own commands, as a user's would. Nothing here sleeps for a fixed
time: `Cluster.wait_until` asks until a condition holds, and says what the cluster looked like if it
never does.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.support.runs import Patience, patience

DEVCLUSTER = Path(__file__).resolve().parents[2] / "tools" / "devcluster"
# Options that a shell may carry, and that would leak into every submission.
_SLURM_PREFIXES = ("SLURM", "SBATCH_", "SACCT", "SINFO_", "SQUEUE_", "SCANCEL_", "SCONTROL_")
_POLL_S = 0.2
_FIELD = re.compile(r"(?:^|\s)([A-Z][\w:/]*)=(.*?)(?=\s[A-Z][\w:/]*=|$)")


def devcluster(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run ``tools/devcluster`` with these arguments; a failure shows what it wrote."""
    command = [sys.executable, str(DEVCLUSTER), *arguments]
    # It has limits of its own, and `install` loads a release of Slurm.
    return _run(command, dict(os.environ), check=check, timeout_s=500)


def why_no_cluster() -> str | None:
    """Why a cluster cannot be started on this machine; None if it can."""
    if os.geteuid() != 0:
        return "a test cluster needs root"
    installed = devcluster("install", "--check", check=False)
    return None if installed.returncode == 0 else installed.stderr.strip()


class Cluster:
    """One running ``tools/devcluster``.

    Args:
        folder: the ``--dir`` it was started with.

    Attributes:
        env: an environment for subprocesses that points every Slurm command at this cluster and
            carries no other Slurm variable.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        kept = {key: val for key, val in os.environ.items() if not key.startswith(_SLURM_PREFIXES)}
        search = f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        self.env = {**kept, "PATH": search, "SLURM_CONF": str(folder / "slurm.conf")}

    # Doing things

    def run(
        self, command: str | list[str], *, check: bool = True, timeout_s: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command against this cluster; with ``check`` a failure shows its output."""
        argv = shlex.split(command) if isinstance(command, str) else command
        return _run(argv, self.env, check=check, timeout_s=timeout_s)

    def sbatch(self, script: str, *arguments: str, env: Mapping[str, str] | None = None) -> str:
        """Submit a batch script (its text; a missing ``#!`` line is added); returns the job's id.

        Output goes to ``output(job_id)`` unless ``arguments`` or the script say otherwise, appended
        to over requeues.
        """
        if not script.startswith("#!"):
            script = "#!/bin/bash\n" + script
        argv = [
            "sbatch",
            "--parsable",
            "--open-mode=append",
            f"--output={self._outputs / '%j.out'}",
        ]
        self._outputs.mkdir(exist_ok=True)
        result = _run([*argv, *arguments], {**self.env, **(env or {})}, stdin=script)
        return result.stdout.strip().split(";")[0]

    def cancel_all(self, timeout_s: float = 60) -> None:
        """End all jobs at once (KILL, not TERM and KillWait) and bring every node back to idle."""

        def clean() -> bool:
            jobs = self.squeue()
            if jobs:
                self.run(["scancel", "--signal=KILL", "--full", *jobs], check=False)
                self.run(["scancel", *jobs], check=False)
                return False
            states = self.node_states()
            for node, state in states.items():
                if state.startswith(("down", "drain", "unk")):
                    self.devcluster("node-up", node, check=False)
                    self.run(f"scontrol update NodeName={node} State=RESUME", check=False)
            return bool(states) and set(states.values()) == {"idle"}

        self.wait_until(clean, timeout_s, "all jobs cancelled and all nodes idle")

    def devcluster(self, command: str, *arguments: str, check: bool = True):
        """Run a sub-command of ``tools/devcluster`` on this cluster: node-down, node-up ..."""
        return devcluster(command, "--dir", str(self.folder), *arguments, check=check)

    # Looking at things

    def job(self, job_id: str) -> dict[str, str]:
        """The fields of ``scontrol show job``: JobState, Restarts, PreemptTime, NodeList ..."""
        line = self.run(["scontrol", "show", "job", "-o", job_id]).stdout.splitlines()[0]
        return dict(_FIELD.findall(line))

    def sacct(self, job_id: str) -> list[dict[str, str]]:
        """One row for each attempt and step of the job (``sacct -D``), oldest first.

        It lags: a state by up to a second, a short job's name by about five.
        """
        wanted = "JobID,JobName,Partition,Account,State,ExitCode,Start,End,Elapsed,AllocTRES"
        out = self.run(["sacct", "-D", "-P", "-j", job_id, "-o", wanted]).stdout.splitlines()
        names = out[0].split("|")
        return [dict(zip(names, line.split("|"), strict=True)) for line in out[1:]]

    def squeue(self) -> dict[str, str]:
        """The state of each job that has not left the queue, by its id."""
        lines = self.run(["squeue", "-h", "-a", "-o", "%A %T"]).stdout.splitlines()
        return dict(line.split() for line in lines)

    def node_states(self) -> dict[str, str]:
        """The state of each node, as sinfo names it."""
        lines = self.run(["sinfo", "-hN", "-p", "a100", "-o", "%N %T"]).stdout.splitlines()
        return dict(line.split() for line in lines)

    def status(self) -> dict:
        """What ``devcluster status --json`` says; also of a cluster that is not up."""
        return json.loads(self.devcluster("status", "--json", check=False).stdout)

    @property
    def release(self) -> str:
        """The release of Slurm, such as 24.11."""
        return self.status()["options"]["slurm"]

    def output(self, job_id: str) -> str:
        """What the job has written so far."""
        path = self._outputs / f"{job_id}.out"
        return path.read_text() if path.exists() else ""

    # Waiting

    def wait_until(self, predicate: Callable[[], object], timeout_s: float, what: str) -> None:
        """Ask ``predicate`` until it is true; fail after ``timeout_s`` with the cluster's state.

        A busy machine gets more time. ``what`` names the condition in the message.
        """
        waited = Patience(timeout_s)
        while not predicate():
            if waited.is_over():
                raise AssertionError(f"not within {waited}: {what}\n{self.report()}")
            time.sleep(_POLL_S)

    def wait_for_state(self, job_id: str, *states: str, timeout_s: float = 30) -> dict[str, str]:
        """Wait until the job is in one of these states; returns its fields."""
        what = f"job {job_id} {' or '.join(states)}"
        self.wait_until(lambda: self.job(job_id)["JobState"] in states, timeout_s, what)
        return self.job(job_id)

    def report(self) -> str:
        """The queue, the jobs, the nodes, and the ends of the logs: for a failure's message."""
        parts = []
        for command in ("squeue -a", "scontrol -o show job", "sinfo -N -l"):
            result = self.run(command, check=False)
            parts.append(f"--- {command}\n{result.stdout}{result.stderr}")
        logs = [*self.folder.glob("log/slurm*.log"), *self._outputs.glob("*.out")]
        for path in sorted(logs, key=lambda path: path.stat().st_mtime)[-6:]:
            lines = path.read_text(errors="replace").splitlines()[-15:]
            parts.append("\n".join([f"--- {path}", *lines]))
        return "\n".join(parts)

    @property
    def _outputs(self) -> Path:
        # Not in the cluster's own folder: `up` refuses folders with strange contents.
        return self.folder.with_name(f"{self.folder.name}-outputs")


def _run(
    argv: list[str],
    env: Mapping[str, str],
    *,
    check: bool = True,
    stdin: str | None = None,
    timeout_s: float = 120,
) -> subprocess.CompletedProcess[str]:
    timeout_s *= patience()
    try:
        result = subprocess.run(
            argv, env=env, text=True, capture_output=True, timeout=timeout_s, input=stdin
        )
    except subprocess.TimeoutExpired:
        result = subprocess.CompletedProcess(argv, 124, "", f"no answer within {timeout_s} s")
    if check and result.returncode != 0:
        raise AssertionError(
            f"{shlex.join(argv)} ended with status {result.returncode}\n"
            f"{result.stdout}{result.stderr}"
        )
    return result

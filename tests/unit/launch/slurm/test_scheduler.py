"""The launcher over another scheduler, and that only ``launch/slurm`` runs Slurm's commands."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import mgpt4_hpc
from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.errors import SlurmRejected
from mgpt4_hpc.launch.job import requeue
from mgpt4_hpc.launch.job.supervisor import decide_after_exit
from mgpt4_hpc.launch.manage.cancel import cancel_run
from mgpt4_hpc.launch.runs.run_state import RunState
from mgpt4_hpc.launch.runs.status import look_at_one
from mgpt4_hpc.launch.slurm.commands import JobFacts
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.launch.slurm.queue import QueuedJob
from mgpt4_hpc.launch.slurm.scheduler import Scheduler
from mgpt4_hpc.launch.submit.submit_run import create_run, submit_run
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import Ledger

PACKAGE = Path(mgpt4_hpc.__file__).parent


@dataclass
class Job:
    script: str
    state: str = "PENDING"
    restarts: int = 0
    may_requeue: bool = True
    preempted: bool = False
    signals: list[str] = field(default_factory=list)


class InMemory:
    """A scheduler that is a dictionary."""

    def __init__(self) -> None:
        self.jobs: dict[str, Job] = {}

    def is_here(self) -> bool:
        return True

    def cluster_name(self) -> str:
        return "memory"

    def submission(self, script: Path) -> list[str]:
        return [sys.executable, "-c", f"print('as job {self.submit(script)}')"]

    def submit(
        self,
        script: Path,
        options: Sequence[str] = (),
        environ: Mapping[str, str] = os.environ,
        *,
        timeout_s: float = 1.0,
    ) -> str:
        job_id = str(100 + len(self.jobs))
        self.jobs[job_id] = Job(script.read_text())
        return job_id

    def queued(self, job_ids: Iterable[str], cluster: str = "") -> dict[str, QueuedJob]:
        return {
            job_id: QueuedJob(job_id, self.jobs[job_id].state, restarts=self.jobs[job_id].restarts)
            for job_id in job_ids
            if job_id in self.jobs
        }

    def accounted(self, job_ids: Iterable[str], cluster: str = "") -> dict[str, QueuedJob]:
        return {}

    def facts(self, job_id: str, *, timeout_s: float = 1.0) -> JobFacts:
        job = self.jobs[job_id]
        preempted = "2026-03-01T10:00:00" if job.preempted else None
        return JobFacts(
            job.state, "None", job.restarts, preempted, "Unknown", 60.0, 3600.0, job.may_requeue
        )

    def requeue(self, job_id: str, *, timeout_s: float = 1.0) -> None:
        job = self.jobs[job_id]
        if not job.may_requeue:
            raise SlurmRejected("requeue is forbidden")
        job.state, job.restarts, job.preempted = "PENDING", job.restarts + 1, False

    def forbid_requeue(self, job_id: str, *, timeout_s: float = 1.0, cluster: str = "") -> None:
        self.jobs[job_id].may_requeue = False

    def cancel(self, job_id: str, *, cluster: str = "") -> None:
        self.jobs[job_id].state = "CANCELLED"

    def signal_ranks(self, job_id: str, name: str, *, cluster: str = "") -> None:
        self.jobs[job_id].signals.append(name)

    def start(self, job_id: str, run: RunDir) -> Ledger:
        """The job starts, and its rank 0 writes a checkpoint."""
        job = self.jobs[job_id]
        job.state = "RUNNING"
        ledger = Ledger(run.ledger, run.claim_attempt({"job_id": job_id}))
        ledger.event(Kind.START, job_id=job_id, restart_count=job.restarts)
        ledger.event(Kind.SAVE, step=5 * (job.restarts + 1))
        return ledger


@pytest.fixture
def memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> InMemory:
    """The launcher's scheduler; the commands of a Slurm that this machine has are out of reach."""
    made: Scheduler = InMemory()
    monkeypatch.setattr("mgpt4_hpc.launch.slurm.scheduler.IN_USE", made)
    monkeypatch.setattr(requeue, "_PAUSE_S", 0.0)
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    return made


@pytest.mark.slow
def test_a_run_over_a_scheduler_in_memory(tmp_path: Path, memory: InMemory) -> None:
    """Submitted, preempted, requeued, asked to save and end, cancelled."""
    run = RunDir(tmp_path / "runs" / "one")
    resolved = load_config("stage1-vicuna7b", overrides={"name": "one"})
    create_run(run, resolved)
    job_id = submit_run(run, resolved, "slurm").job_id
    assert "mgpt4_hpc.launch.supervise" in memory.jobs[job_id].script
    assert look_at_one(run).state is RunState.PENDING

    memory.start(job_id, run).close()
    assert look_at_one(run).state is RunState.RUNNING
    memory.jobs[job_id].preempted = True
    decide_after_exit(run, JobStart("slurm", job_id, 0), 137)
    assert (memory.jobs[job_id].state, memory.jobs[job_id].restarts) == ("PENDING", 1)

    memory.start(job_id, run).close()
    cancel_run(run, look_at_one(run), save=True)
    assert memory.jobs[job_id].signals == ["USR2"] and not memory.jobs[job_id].may_requeue
    verdict = decide_after_exit(run, JobStart("slurm", job_id, 1), 75)
    assert verdict.exit_code != 0 and memory.jobs[job_id].restarts == 1
    cancel_run(run, look_at_one(run), save=False)
    assert memory.jobs[job_id].state == "CANCELLED"


COMMANDS = {
    "sbatch",
    "squeue",
    "sacct",
    "scontrol",
    "scancel",
    "sinfo",
    "sacctmgr",
    "srun",
    "sprio",
}


def offences(source: str) -> list[str]:
    """Uses of Slurm's commands in a module: one run, or what parses their output."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.List, ast.Tuple)) and node.elts:
            first = node.elts[0]
            # Words of a command line follow its name; a list of names is none.
            words = [one for one in node.elts if isinstance(one, (ast.Constant, ast.JoinedStr))]
            if (
                isinstance(first, ast.Constant)
                and first.value in COMMANDS
                and not all(getattr(one, "value", None) in COMMANDS for one in words)
            ):
                found.append(f"{node.lineno}: {ast.unparse(node)}")
        name = getattr(node, "attr", getattr(node, "id", getattr(node, "name", "")))
        if name in ("run_slurm", "parse_record", "parse_squeue", "parse_sacct"):
            found.append(f"{getattr(node, 'lineno', 0)}: {name}")
    return found


@pytest.mark.slow
def test_only_launch_slurm_runs_its_commands() -> None:
    modules = [path for path in PACKAGE.rglob("*.py") if path.parent != PACKAGE / "launch/slurm"]
    assert len(modules) > 300
    assert {
        str(path.relative_to(PACKAGE)): found
        for path in modules
        if (found := offences(path.read_text(encoding="utf-8")))
    } == {}
    for known in ('subprocess.run(["squeue", "--me"])', "commands.run_slurm(words)"):
        assert offences(known)

"""Random schedules of what people and Slurm do to runs, their folders and their names.

A schedule is a seed. It draws actions on two or three names: submit, delete, rename, copy, cancel,
resume, requeue, kill, on this machine, on a Slurm cluster, and from a second cluster that shares
the files. Every command is the real one and every job is a real job; only the ranks' Python is
forked (tests/support/fork_python.py), as hundreds of starts would take days otherwise.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

from mgpt4_hpc.cli import main
from mgpt4_hpc.launch.runs import processes
from mgpt4_hpc.run_dir import RunDir, list_runs, read_json
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.slurm.harness import Cluster
from tests.support.runs import Patience, final_projector, records

NAMES = ("one", "two", "three")
SAVE_EVERY_S = 0.3
QUIET_S = 90.0
"""By then a job without a folder has noticed: a save interval, and a loaded machine's start."""


@dataclass(frozen=True)
class Job:
    """A job as the schedule knows it: where it is, its id, and the folder that it was made for."""

    where: str
    job_id: str
    run_id: str
    inode: int


@dataclass
class Schedule:
    """One schedule's world.

    Attributes:
        seed: decides everything but the timing.
        runs: folder of the runs.
        variants: settings by name, as ``--config`` files.
        expected: projector of each variant's undisturbed run, by its config digest.
        clusters: by name; "" is this machine, without Slurm.
    """

    seed: int
    runs: Path
    variants: dict[str, Path]
    expected: dict[str, str]
    clusters: dict[str, Cluster | None]
    jobs: dict[tuple[str, str], Job] = field(default_factory=dict)
    asked: set[tuple[str, str]] = field(default_factory=set)
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    # -- the commands, in this process ------------------------------------------------------

    def mgpt4(self, where: str, *words: str) -> tuple[int, str]:
        """Exit code and stdout of a command, given on that cluster's login node."""
        output, errors = io.StringIO(), io.StringIO()
        code = 0
        with self._login(where), redirect_stdout(output), redirect_stderr(errors):
            try:
                main.main([*words, "--runs-dir", str(self.runs)])
            except SystemExit as leave:
                code = leave.code if isinstance(leave.code, int) else 1
        said = f"{output.getvalue()}{errors.getvalue()}".strip()
        self.told.append(f"{where or 'here'}: mgpt4 {' '.join(words)} -> {code} {said}")
        assert "Traceback" not in said, self.story()
        return code, output.getvalue()

    @contextmanager
    def _login(self, where: str) -> Iterator[None]:
        cluster = self.clusters[where]
        before = dict(os.environ)
        if cluster is not None:
            os.environ["SLURM_CONF"] = cluster.env["SLURM_CONF"]
            os.environ["PATH"] = cluster.env["PATH"]
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(before)

    # -- actions ------------------------------------------------------------------------------

    def run(self, actions: int = 8) -> None:
        """Do it, wait until all is quiet, and hold the outcome to what must be true."""
        self._submit(NAMES[0])
        acts: list[Callable[[str], None]] = [
            self._submit, self._submit, self._delete, self._remove, self._move, self._copy,
            self._cancel, self._resume, self._resume, self._branch, self._requeue, self._kill,
        ]  # fmt: skip
        for _ in range(actions):
            self._let_pass()
            self.random.choice(acts)(self.random.choice(NAMES[: 2 + self.seed % 2]))
            self._no_foreign_checkpoint()
        self._quiet()
        self._no_foreign_checkpoint()
        self._nobody_cancelled_unasked()
        self._finished_ones_are_right()
        print(self.story())

    def _let_pass(self) -> None:
        """Some of the time nothing, else until a run here has something to lose, or a moment."""
        if self.random.random() < 0.3:
            return
        until = time.monotonic() + self.random.uniform(0.5, 6)
        before = len(list(self.runs.glob("*/checkpoints/step-*")))
        while time.monotonic() < until:
            if len(list(self.runs.glob("*/checkpoints/step-*"))) > before:
                return
            time.sleep(0.05)

    def _where(self) -> str:
        return self.random.choice(list(self.clusters))

    def _submit(self, name: str) -> None:
        where, variant = self._where(), self.random.choice(list(self.variants))
        config = str(self.variants[variant])
        executor = "slurm" if where else "local"
        self._note(
            where, "submit", "--config", config, "--name", name, "--executor", executor, "--json"
        )

    def _note(self, where: str, *words: str) -> None:
        code, text = self.mgpt4(where, *words)
        if code != 0:
            return
        told = json.loads(text)
        for line in told if isinstance(told, list) else [told]:
            if line.get("job_id") is None:
                continue
            folder = RunDir(Path(line["run_dir"]))
            at = where if line["executor"] == "slurm" else ""
            job = Job(at, line["job_id"], folder.run_id, folder.path.stat().st_ino)
            self.jobs[at, job.job_id] = job

    def _delete(self, name: str) -> None:
        self.told.append(f"rm -rf {name}")
        for _ in range(100):  # a job may be writing
            shutil.rmtree(self.runs / name, ignore_errors=True)
            if not (self.runs / name).exists():
                return
        raise AssertionError(f"{name} cannot be deleted\n{self.story()}")

    def _remove(self, name: str) -> None:
        before = self._inode(name)
        living = [job for job in self.jobs.values() if job.inode == before and self._lives(job)]
        code, _ = self.mgpt4(self._where(), "rm", name, "--yes")
        # It may have ended meanwhile; one that lives on has lost its folder.
        lost = [job for job in living if code == 0 and self._lives(job)]
        assert not lost, f"a living run was removed: {lost}\n{self.story()}"

    def _move(self, name: str) -> None:
        target = self.random.choice(NAMES)
        if (self.runs / name).exists() and not (self.runs / target).exists():
            self.told.append(f"mv {name} {target}")
            (self.runs / name).rename(self.runs / target)

    def _copy(self, name: str) -> None:
        target = self.random.choice(NAMES)
        if (self.runs / name).exists() and not (self.runs / target).exists():
            self.told.append(f"cp -a {name} {target}")
            copy = ["cp", "-a", self.runs / name, self.runs / target]
            subprocess.run(copy, check=False, stderr=subprocess.DEVNULL)

    def _cancel(self, name: str) -> None:
        before, run_id = self._inode(name), RunDir(self.runs / name).run_id
        for key, job in self.jobs.items():
            # Asked for is the job of this folder, or of the run that was restored in its place.
            if before is not None and (job.inode == before or self._noted_here(name, job, run_id)):
                self.asked.add(key)
        save = ["--save"] if self.random.random() < 0.5 else []
        self.mgpt4(self._where(), "cancel", name, *save)

    def _noted_here(self, name: str, job: Job, run_id: str) -> bool:
        try:
            noted = read_json(self.runs / name / "slurm" / "job.json")
        except (OSError, ValueError):
            return False
        here = noted.get("folder") == str((self.runs / name).resolve())
        return here and noted.get("job_id") == job.job_id and job.run_id == run_id

    def _resume(self, name: str) -> None:
        self._note(self._where(), "resume", name, "--json")

    def _branch(self, name: str) -> None:
        self._note(self._where(), "resume", name, "--as", self.random.choice(NAMES), "--json")

    def _requeue(self, name: str) -> None:
        """As a preemption, or an administrator, does it."""
        for job in self._of(name):
            self.told.append(f"requeue {job}")
            cluster = self.clusters[job.where]
            if cluster is not None:
                cluster.run(["scontrol", "requeue", job.job_id], check=False)
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(job.job_id), signal.SIGUSR2)

    def _kill(self, name: str) -> None:
        """The rank dies at once, as for lack of memory."""
        starts = [one for one in records(self.runs / name) if one.get("kind") == "start"]
        pids = [process["pid"] for one in starts[-1:] for process in one.get("processes", [])]
        for pid in pids:
            if self._of(name):  # else the number may be another's by now
                self.told.append(f"kill -9 the rank of {name}")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    # -- what must be true --------------------------------------------------------------------

    def _of(self, name: str) -> list[Job]:
        inode = self._inode(name)
        return [job for job in self.jobs.values() if job.inode == inode and self._lives(job)]

    def _inode(self, name: str) -> int | None:
        try:
            return (self.runs / name).stat().st_ino
        except OSError:
            return None

    def _lives(self, job: Job) -> bool:
        cluster = self.clusters[job.where]
        if cluster is not None:
            return job.job_id in cluster.squeue()
        return processes.exists(int(job.job_id))

    def _no_foreign_checkpoint(self) -> None:
        for run in list_runs(self.runs):
            try:
                lineage = run.lineage
                for manifest in run.checkpoints.glob("step-*/manifest.json"):
                    owner = json.loads(manifest.read_text())["meta"]["run"]
                    assert owner in lineage, f"{manifest} is of {owner}\n{self.story()}"
            except (OSError, ValueError):
                continue  # pruned in this moment

    def _quiet(self) -> None:
        """Wait until every job has ended, or has a folder of its own to work in."""
        waited = Patience(QUIET_S)
        while homeless := self._homeless():
            assert not waited.is_over(), f"no folder: {homeless}\n{self.story()}"
            time.sleep(0.2)
        waited = Patience(4 * QUIET_S)
        while working := [job for job in self.jobs.values() if self._lives(job)]:
            assert not waited.is_over(), f"does not end: {working}\n{self.story()}"
            time.sleep(0.2)

    def _homeless(self) -> list[Job]:
        owned = {run.run_id for run in list_runs(self.runs)}
        return [j for j in self.jobs.values() if j.run_id not in owned and self._lives(j)]

    def _nobody_cancelled_unasked(self) -> None:
        for key, job in self.jobs.items():
            cluster = self.clusters[job.where]
            if cluster is not None and key not in self.asked:
                state = cluster.job(job.job_id)["JobState"]
                assert state != "CANCELLED", f"{job} was cancelled\n{self.story()}"

    def _finished_ones_are_right(self) -> None:
        for run in list_runs(self.runs):
            attempts = read_ledgers(run.ledger)
            if attempts and attempts[-1].cause == "finished":
                wanted = self.expected[str(read_json(run.identity_file)["config_digest"])]
                assert final_projector(run.path) == wanted, f"{run.name}\n{self.story()}"

    def end(self) -> None:
        """Take down what still runs."""
        for job in self.jobs.values():
            cluster = self.clusters[job.where]
            if not self._lives(job):
                continue
            if cluster is not None:
                cluster.run(["scancel", "--full", "--signal=KILL", job.job_id], check=False)
                cluster.run(["scancel", job.job_id], check=False)
            else:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(int(job.job_id), signal.SIGKILL)

    def story(self) -> str:
        """What was done, for a failure's message."""
        return "\n".join([f"schedule {self.seed}:", *self.told])

"""The same job without Slurm: submitit's local executor, with our restarts.

Submitit's controller restarts only on exit code 144, six times at most, waits for ranks that can
never end once a peer died, and forgets how it ended. Ours keeps its process model and its files
and adds what Slurm and the batch script do there: kill on a bad exit, budgets, exit codes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.local.local import Controller, LocalJob

from mgpt4_hpc.errors import EXIT_RESUMABLE
from mgpt4_hpc.identity import RUN_ID_VARIABLE
from mgpt4_hpc.launch.runs.cancel_request import request_cancel
from mgpt4_hpc.ownership import assert_owned
from mgpt4_hpc.run_dir import RunDir

KILL_WAIT_S = 30.0
"""Seconds from TERM to KILL for the peers of a dead rank; Slurm's KillWait default."""

_POLL_S = 0.05


def controller_environment(
    run: RunDir, tasks: int, gpus: int, command: str, extra: Mapping[str, str]
) -> dict[str, str]:
    """Variables that the controller and its tasks need beside the user's own.

    Args:
        run: what they work on.
        tasks: ranks.
        gpus: GPUs that they share out; 0 leaves what the user made visible.
        command: shell words that start a rank.
        extra: the settings' ``launch.env``.
    """
    environ = {
        **extra,
        "SUBMITIT_LOCAL_NTASKS": str(tasks),
        "SUBMITIT_LOCAL_COMMAND": command,
        "SUBMITIT_LOCAL_TIMEOUT_S": "0",  # read by submitit's Controller; ours knows no time limit
        "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "0",
        "SUBMITIT_LOCAL_NODEID": "0",
        "SUBMITIT_LOCAL_JOB_NUM_NODES": "1",
        "SUBMITIT_STDERR_TO_STDOUT": "1",
        "SUBMITIT_EXECUTOR": "local",
        "SUBMITIT_LOCAL_WITH_SHELL": "",
        "MGPT4_RUN_DIR": str(run.path),
        RUN_ID_VARIABLE: run.run_id,
        "PYTHONPATH": os.pathsep.join(
            filter(None, [str(run.code), os.environ.get("PYTHONPATH", "")])
        ),
        "PYTHONSAFEPATH": "1",
    }
    if gpus:
        environ["CUDA_VISIBLE_DEVICES"] = _visible_gpus(gpus, os.environ)
    return environ


def controller_command(run: RunDir) -> list[str]:
    """What starts the controller."""
    return [sys.executable, "-m", "mgpt4_hpc.launch.local", str(run.slurm)]


class LocalExecutor(submitit.LocalExecutor):
    """Submitit's local executor, with the controller of this module."""

    def _submit_command(self, command: str) -> LocalJob[Any]:
        tasks = self.parameters.get("tasks_per_node", 1)
        run = RunDir(Path(self.parameters["run_dir"]))
        gpus = self.parameters.get("gpus_per_node", 0)
        extra = self.parameters.get("env", {})
        # Its own log: with our stdout it would hold up a process that reads that to its end.
        with (self.folder / "controller.log").open("ab") as log:
            process = subprocess.Popen(
                controller_command(run),
                env={**os.environ, **controller_environment(run, tasks, gpus, command, extra)},
                cwd=run.path,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal ends the command, not the run
            )
        job: LocalJob[Any] = LocalJob(
            folder=self.folder, job_id=str(process.pid), process=process, tasks=list(range(tasks))
        )
        return job


def _visible_gpus(count: int, environ: Mapping[str, str]) -> str:
    """The first ``count`` GPUs, of those that the user chose if so."""
    if "CUDA_VISIBLE_DEVICES" not in environ:
        return ",".join(str(number) for number in range(count))
    return ",".join(environ["CUDA_VISIBLE_DEVICES"].split(",")[:count])


class RestartingController(Controller):
    """Starts the tasks, passes signals on, and starts them again as long as the run may go on."""

    def __init__(self, folder: Path, run_dir: Path) -> None:
        super().__init__(folder)
        self.run_dir = run_dir
        self._interrupted = False
        self._told = False
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._forward_signal)
        signal.signal(signal.SIGINT, self._cancel)

    def _cancel(self, number: int, frame: object) -> None:
        # As scancel: the tasks may save, but are not started again. The rest is done outside of
        # the handler, which may have interrupted anything, also the moment between two starts.
        self._interrupted = True

    def _pass_on_cancel(self) -> None:
        """Leave the mark that the ranks look for, then ask them to save and end."""
        self._told = True
        try:
            request_cancel(RunDir(self.run_dir), self.pid)
        except OSError as error:
            print(f"the run could not be marked as cancelled: {error}", flush=True)
        self._signal_living(signal.SIGTERM)

    def supervise(self) -> int:
        """Run the tasks until the run is finished, given up or cancelled; the exit code."""
        from mgpt4_hpc.launch.job.supervisor import decide_after_exit_local

        restarts = 0
        while True:
            os.environ["MGPT4_LOCAL_RESTARTS"] = str(restarts)
            try:
                assert_owned(self.run_dir)  # the tasks unpickle their job
                self.start_tasks()
                codes = self.wait_as_slurm()
            finally:
                self.kill_tasks()
            if all(code == 0 for code in codes):
                return 0
            if self._interrupted:
                return EXIT_RESUMABLE
            verdict = decide_after_exit_local(self.run_dir, self.pid, restarts, codes)
            if self._interrupted:
                return EXIT_RESUMABLE
            if not verdict.again:
                print(f"not started again: {verdict.reason}", flush=True)
                return verdict.exit_code
            restarts += 1

    def wait_as_slurm(self) -> list[int]:
        """Wait for all tasks; once one ends badly, TERM and then KILL the others.

        A rank that asks for its restart (144) ends badly too, but it leaves only after rank 0
        saved and decided, as under ``srun --kill-on-bad-exit``.
        """
        kill_at: float | None = None
        while True:
            codes = [task.poll() for task in self.tasks]
            ended = [code for code in codes if code is not None]
            if len(ended) == len(codes):
                return ended
            if self._interrupted and not self._told:
                self._pass_on_cancel()
            now = time.monotonic()
            if kill_at is None and any(ended):
                kill_at = now + KILL_WAIT_S
                self._signal_living(signal.SIGTERM)
            if kill_at is not None and now >= kill_at:
                self._signal_living(signal.SIGKILL)
            time.sleep(_POLL_S)

    def _signal_living(self, number: signal.Signals) -> None:
        for task in self.tasks:
            if task.poll() is None:
                task.send_signal(number)


def main(argv: Sequence[str]) -> int:
    """Entry of the controller's process: the submitit folder is its only argument."""
    return RestartingController(Path(argv[0]), Path(os.environ["MGPT4_RUN_DIR"])).supervise()

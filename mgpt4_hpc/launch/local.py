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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import submitit
from submitit.local.local import Controller, LocalJob

from mgpt4_hpc.errors import EXIT_RESUMABLE

EXIT_RESTART = 144
"""What submitit's local job side means by "start me again"."""

KILL_WAIT_S = 30.0
"""From TERM to KILL for ranks whose peer died; Slurm's KillWait default."""

_POLL_S = 0.05


class LocalExecutor(submitit.LocalExecutor):
    """Submitit's local executor, with the controller of this module."""

    def _submit_command(self, command: str) -> LocalJob[Any]:
        tasks = self.parameters.get("tasks_per_node", 1)
        gpus = range(self.parameters.get("gpus_per_node", 0))
        env = dict(os.environ)
        env.update(
            SUBMITIT_LOCAL_NTASKS=str(tasks),
            SUBMITIT_LOCAL_COMMAND=command,
            SUBMITIT_LOCAL_TIMEOUT_S="0",  # read by submitit's Controller; ours knows no time limit
            SUBMITIT_LOCAL_SIGNAL_DELAY_S="0",
            SUBMITIT_LOCAL_NODEID="0",
            SUBMITIT_LOCAL_JOB_NUM_NODES="1",
            SUBMITIT_STDERR_TO_STDOUT="1",
            SUBMITIT_EXECUTOR="local",
            SUBMITIT_LOCAL_WITH_SHELL="",
            MGPT4_RUN_DIR=str(self.parameters["run_dir"]),
            PYTHONPATH=os.pathsep.join(
                filter(None, [str(self.parameters["code"]), env.get("PYTHONPATH", "")])
            ),
            PYTHONSAFEPATH="1",
        )
        if gpus:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus))
        process = subprocess.Popen(
            [sys.executable, "-m", "mgpt4_hpc.launch.local", str(self.folder)],
            env=env,
            cwd=self.parameters["run_dir"],
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # a Ctrl-C in the terminal ends the command, not the run
        )
        job: LocalJob[Any] = LocalJob(
            folder=self.folder, job_id=str(process.pid), process=process, tasks=list(range(tasks))
        )
        return job


class RestartingController(Controller):
    """Starts the tasks, passes signals on, and starts them again as long as the run may go on."""

    def __init__(self, folder: Path, run_dir: Path) -> None:
        super().__init__(folder)
        self.run_dir = run_dir
        self._interrupted = False
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._forward_signal)
        signal.signal(signal.SIGINT, self._cancel)

    def _cancel(self, number: int, frame: object) -> None:
        # As scancel: the tasks may save, but nobody brings them back.
        self._interrupted = True
        self._forward_signal(signal.SIGTERM)

    def supervise(self) -> int:
        """Run the tasks until the run is finished, given up or cancelled; the exit code."""
        from mgpt4_hpc.launch.supervise import settle_local

        restarts = 0
        while True:
            os.environ["MGPT4_LOCAL_RESTARTS"] = str(restarts)
            try:
                self.start_tasks()
                codes = self.wait_as_slurm()
            finally:
                self.kill_tasks()
            if all(code == 0 for code in codes):
                return 0
            if self._interrupted:
                return EXIT_RESUMABLE
            again = settle_local(self.run_dir, self.pid, restarts, codes)
            if not again:
                return max(code if code > 0 else 1 for code in codes if code)
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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The local controller, with small Python programs in the place of training."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.launch.job import local_controller
from mgpt4_hpc.launch.runs.cancel_request import cancel_requested
from mgpt4_hpc.launch.runs.processes import exists
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.support.runs import patience, wait_until

REPO = Path(__file__).parents[4]

CONTROLLER = """
import sys
from mgpt4_hpc.launch.job import local_controller
local_controller.KILL_WAIT_S = {kill_wait_s}
sys.exit(local_controller.main([sys.argv[1]]))
"""

PROLOGUE = """
import os, pathlib, signal, sys, time
rank, restart = int(os.environ["SUBMITIT_LOCAL_GLOBALID"]), int(os.environ["MGPT4_LOCAL_RESTARTS"])
run = pathlib.Path(os.environ["MGPT4_RUN_DIR"])
def tell(what):
    with (run / f"told-{rank}").open("a") as file:
        file.write(f"{what} {restart}\\n")
def on(number, what, code=None):
    def handler(*args):
        tell(what)
        if code is not None:
            os._exit(code)
    signal.signal(number, handler)
def wait_forever():
    tell("ready")
    while True:
        signal.pause()
"""


class Controlled:
    """A controller in its own process, on tasks that run the given program."""

    def __init__(self, folder: Path, program: str, tasks: int, kill_wait_s: float) -> None:
        self.run = RunDir(folder / "run")
        self.run.create({"name": "run"})
        budgets = {"launch.max_crashes": 1, "launch.max_stalled_attempts": 50}
        write_config(self.run.config_file, load_config("stage1-vicuna7b", overrides=budgets))
        script = folder / "task.py"
        script.write_text(PROLOGUE + program)
        env = {
            **os.environ,
            "PYTHONPATH": str(REPO),
            "SUBMITIT_LOCAL_NTASKS": str(tasks),
            "SUBMITIT_LOCAL_COMMAND": shlex.join([sys.executable, "-S", "-E", str(script)]),
            "SUBMITIT_LOCAL_TIMEOUT_S": "0",
            "SUBMITIT_LOCAL_SIGNAL_DELAY_S": "0",
            "SUBMITIT_STDERR_TO_STDOUT": "1",
            "SUBMITIT_LOCAL_WITH_SHELL": "",
            "SUBMITIT_EXECUTOR": "local",
            "MGPT4_RUN_DIR": str(self.run.path),
        }
        code = CONTROLLER.format(kill_wait_s=kill_wait_s)
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, str(self.run.slurm)], env=env, start_new_session=True
        )

    def told(self, rank: int) -> list[str]:
        file = self.run.path / f"told-{rank}"
        return file.read_text().splitlines() if file.exists() else []

    def wait_for(self, rank: int, what: str) -> None:
        wait_until(lambda: what in self.told(rank), 30, f"rank {rank} told {what!r}")

    def wait(self) -> int:
        return self.process.wait(timeout=30 * patience())


Make = Callable[..., Controlled]


@pytest.fixture
def controlled(tmp_path: Path):
    made: list[Controlled] = []

    def make(program: str, tasks: int = 2, kill_wait_s: float = 20.0) -> Controlled:
        made.append(Controlled(tmp_path, program, tasks, kill_wait_s))
        return made[-1]

    yield make
    for controller in made:
        if controller.process.poll() is None:
            os.killpg(controller.process.pid, signal.SIGKILL)
            controller.process.wait()


@pytest.mark.slow
def test_finished_is_finished(controlled: Make) -> None:
    controller = controlled("tell('done')")
    assert controller.wait() == 0
    assert controller.told(0) == controller.told(1) == ["done 0"]


DECIDED = """
import json
def decide(cause):
    (run / "ledger" / f"attempt-{restart + 1:04d}.jsonl").write_text(
        json.dumps({"t": time.time(), "kind": "start", "restart_count": restart,
                    "job_id": os.environ["SUBMITIT_LOCAL_JOB_ID"]}) + "\\n"
        + json.dumps({"t": time.time(), "kind": "end", "cause": cause, "exit_code": 75}) + "\\n")
    tell("decided")
def wait_for_decision():
    # As in real life, where a barrier stands between: nobody leaves before rank 0 has decided.
    while f"decided {restart}" not in (run / "told-0").read_text().splitlines():
        time.sleep(0.01)
"""


@pytest.mark.slow
def test_144_brings_the_tasks_back_more_often_than_submitit_would(controlled: Make) -> None:
    controller = controlled(
        DECIDED
        + """
on(signal.SIGTERM, "term")
tell("began")
if restart == 8:
    sys.exit(0)
if rank == 0:
    decide("preempted")
    sys.exit(144)
while not (run / "told-0").exists():
    time.sleep(0.01)
wait_for_decision()
sys.exit(75)
"""
    )
    assert controller.wait() == 0
    began = [line for line in controller.told(0) if line.startswith("began")]
    assert began == [f"began {restart}" for restart in range(9)]


@pytest.mark.slow
def test_a_dead_rank_takes_the_others_along_with_term_first(controlled: Make) -> None:
    controller = controlled(
        """
if rank == 1 and restart == 0:
    while not (run / "told-0").exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
if restart == 1:
    sys.exit(0)
on(signal.SIGTERM, "term", 143)
wait_forever()
"""
    )
    assert controller.wait() == 0
    assert controller.told(0) == ["ready 0", "term 0"]
    (attempt,) = read_ledgers(controller.run.ledger)
    assert attempt.cause == "crashed"


@pytest.mark.slow
def test_who_does_not_listen_to_term_is_killed(controlled: Make) -> None:
    controller = controlled(
        """
if rank == 1:
    told = run / "told-0"
    while not (told.exists() and f"ready {restart}" in told.read_text()):
        time.sleep(0.01)
    sys.exit(3)
on(signal.SIGTERM, "term")
wait_forever()
""",
        kill_wait_s=0.3,
    )
    # max_crashes is 1: the second crash is the end.
    assert controller.wait() == 70
    assert controller.told(0) == ["ready 0", "term 0", "ready 1", "term 1"]
    assert "launch.max_crashes allows 1" in controller.run.failed.read_text()


@pytest.mark.slow
def test_a_killed_controller_leaves_no_rank_running(controlled: Make) -> None:
    controller = controlled(
        f"""
import site
site.main()
sys.path.insert(0, {str(REPO)!r})
from mgpt4_hpc.launch.job import rank as module
module.run_rank = lambda *args: (tell(f"pid {{os.getpid()}}"), wait_forever())
module.run_task(str(run))
"""
    )
    for rank in (0, 1):
        controller.wait_for(rank, "ready 0")
    pids = [int(controller.told(rank)[0].split()[1]) for rank in (0, 1)]
    controller.process.kill()
    wait_until(lambda: not any(exists(pid) for pid in pids), 30, "both ranks are gone")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_signals_reach_every_rank(controlled: Make, number: signal.Signals) -> None:
    controller = controlled(f"on({int(number)}, 'signal', 0)\nwait_forever()")
    for rank in (0, 1):
        controller.wait_for(rank, "ready 0")
    controller.process.send_signal(number)
    assert controller.wait() == 0
    assert controller.told(0) == controller.told(1) == ["ready 0", "signal 0"]


@pytest.mark.slow
def test_after_int_the_tasks_may_save_and_nobody_brings_them_back(controlled: Make) -> None:
    controller = controlled(
        """
on(signal.SIGTERM, "term", 144)
wait_forever()
"""
    )
    for rank in (0, 1):
        controller.wait_for(rank, "ready 0")
    controller.process.send_signal(signal.SIGINT)
    assert controller.wait() == 75
    assert controller.told(0) == ["ready 0", "term 0"]
    assert cancel_requested(controller.run, str(controller.process.pid))


@pytest.mark.slow
def test_an_int_between_two_starts_is_not_lost(controlled: Make) -> None:
    # Sent while the first tasks are still ending: whenever it is noticed, no start follows it
    # that would run to the end.
    controller = controlled(
        DECIDED
        + """
tell("began")
if restart == 0:
    if rank == 0:
        decide("preempted")
        os.kill(os.getppid(), signal.SIGINT)
        os._exit(144)
    while not (run / "told-0").exists():
        time.sleep(0.01)
    wait_for_decision()
    signal.pause()
on(signal.SIGTERM, "term", 75)
wait_forever()
"""
    )
    assert controller.wait() == 75
    assert controller.told(0)[0] == "began 0"
    assert "ready 1" not in controller.told(0) or controller.told(0)[-1] == "term 1"


def test_the_executor_takes_the_gpus_that_the_user_chose() -> None:
    assert local_controller._visible_gpus(2, {}) == "0,1"
    assert local_controller._visible_gpus(2, {"CUDA_VISIBLE_DEVICES": "5,6,7"}) == "5,6"
    assert local_controller._visible_gpus(1, {"CUDA_VISIBLE_DEVICES": "GPU-abc"}) == "GPU-abc"
    assert local_controller._visible_gpus(1, {"CUDA_VISIBLE_DEVICES": ""}) == "", "none was chosen"


def test_the_controller_keeps_none_of_our_streams(tmp_path: Path) -> None:
    # `jobs=$(mgpt4 submit --executor local --json)` must return before the run is over.
    folder = tmp_path / "slurm"
    folder.mkdir()
    code = (
        "import sys; from pathlib import Path\n"
        "from mgpt4_hpc.launch.job.local_controller import LocalExecutor\n"
        f"executor = LocalExecutor(folder=Path({str(folder)!r}))\n"
        "executor.update_parameters(tasks_per_node=1, gpus_per_node=0, "
        f"run_dir={str(tmp_path)!r}, code={str(REPO)!r})\n"
        "print(executor._submit_command('sleep 600').job_id)\n"
        "import os; sys.stdout.flush(); os._exit(0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    os.killpg(int(done.stdout), signal.SIGKILL)
    assert (folder / "controller.log").exists()

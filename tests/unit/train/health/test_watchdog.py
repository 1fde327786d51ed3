"""A process that hangs ends itself and says where it stood; one that is merely slow does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mgpt4_hpc.errors import EXIT_HUNG
from mgpt4_hpc.train.health.watchdog import Watchdog
from tests.unit.train.health.hanging import PROGRAM, REPO, run_program


@pytest.mark.slow
def test_a_hang_leaves_the_stacks_of_all_threads_and_a_note() -> None:
    code, out, err = run_program(
        """
def in_the_background():
    hang_here()
threading.Thread(target=in_the_background, daemon=True).start()
dog.beat(7)
hang_here()
""",
        slow_s=10.0,
    )
    assert code == EXIT_HUNG
    assert out == "noted step 7\n"
    assert "in phase 'step' after step 7" in err
    assert "in in_the_background" in err and "in <module>" in err
    assert f"ends itself with code {EXIT_HUNG}" in err


@pytest.mark.slow
def test_a_hang_in_a_slow_phase_is_one_too() -> None:
    code, out, _ = run_program("with dog.phase('validation'):\n    hang_here()")
    assert (code, out) == (EXIT_HUNG, "noted validation 0\n")


@pytest.mark.slow
def test_a_process_that_was_suspended_for_longer_than_all_limits_goes_on() -> None:
    program = PROGRAM.format(step_s=0.7, slow_s=10.0) + (
        """
print("ready", flush=True)
for step in range(40):
    time.sleep(0.05)
    dog.beat(step)
print(awake_clock.awake_clock().suspended_s)
"""
    )
    environ = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        began = time.monotonic()
        process.send_signal(signal.SIGSTOP)
        time.sleep(2.0)
        process.send_signal(signal.SIGCONT)
        stopped_s = time.monotonic() - began
        suspended_s = float(process.communicate(timeout=60)[0])
    assert process.returncode == 0
    assert 1.9 < suspended_s < stopped_s + 1.0


@pytest.mark.slow
def test_a_note_that_hangs_too_does_not_keep_the_process() -> None:
    code, _, err = run_program("dog.note = lambda hang: hang_here()\nhang_here()")
    assert code == EXIT_HUNG
    assert "in hang_here" in err


@pytest.mark.slow
def test_who_moves_or_says_that_it_takes_longer_lives_on() -> None:
    body = """
time.sleep(0.4)
for step in range(12):
    time.sleep(0.06)
    dog.beat(step)
with dog.phase("loading"):
    with dog.phase("part", 30.0):
        time.sleep(0.7)
    time.sleep(0.3)
dog.close()
time.sleep(0.7)
print("through")
"""
    assert run_program(body, step_s=0.6, slow_s=20.0) == (0, "through\n", "")


def test_no_limit_is_no_watch(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        dog = Watchdog(0.0, 1.0, stream=stream).start()
    assert dog._thread is None
    dog.beat()
    dog.close()


@pytest.mark.parametrize(("step_s", "slow_s", "phase_s"), [(5.0, 1.0, 5.0), (5.0, 9.0, 9.0)])
def test_a_slow_phase_is_never_allowed_less_than_a_step(
    step_s: float, slow_s: float, phase_s: float
) -> None:
    dog = Watchdog(step_s, slow_s, stream=sys.__stderr__, clock=time.monotonic)
    assert dog._allowed() == ("first step", phase_s)
    dog.beat(1)
    assert dog._allowed() == ("step", step_s)
    with dog.phase("loading"):
        assert dog._allowed() == ("loading", phase_s)
    assert dog._allowed() == ("step", step_s)

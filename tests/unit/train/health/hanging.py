"""What several test files share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.runs import patience

REPO = Path(__file__).parents[4]

PROGRAM = """
import ctypes, signal, sys, threading, time
from mgpt4_hpc.telemetry import awake_clock
from mgpt4_hpc.train.health import alarm, watchdog
awake_clock.SHORTEST_S, awake_clock._TICK_S = 0.5, 0.05
alarm.FIRST_STAGE = signal.SIGHUP  # its second stage takes one second
watchdog.PEERS_S, watchdog.ALARM_DELAY_S = 0.1, 0.2
watchdog._LOOK_EVERY_S, watchdog._NOTE_S = 0.05, 0.6
def note(hang):
    print("noted", hang.phase, hang.step, flush=True)
dog = watchdog.Watchdog({step_s}, {slow_s}, note=note).start()
def hang_here():
    threading.Event().wait()
"""


def run_program(body: str, step_s: float = 0.2, slow_s: float = 0.4) -> tuple[int, str, str]:
    program = PROGRAM.format(step_s=step_s, slow_s=slow_s) + body
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(REPO)},
        capture_output=True,
        text=True,
        timeout=60 * patience(),
        check=False,
    )
    return done.returncode, done.stdout, done.stderr

"""Stop signals are noted, also those that came before anybody listened; in forked processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from mgpt4_hpc.train.stopping.stop import (
    ANOTHER_RANK,
    STOP_SIGNALS,
    NeverStop,
    SignalStop,
    unless_stopped,
)
from tests.support.forked import in_processes


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_is_noted_and_the_first_one_counts(number: signal.Signals) -> None:
    def run() -> list[object]:
        stop = SignalStop(clock=lambda: 12.5).install()
        seen: list[object] = [stop.poll()]
        for each in (number, *STOP_SIGNALS, signal.SIGCONT):
            os.kill(os.getpid(), each)
        request = stop.poll()
        assert request is not None
        return [*seen, request.reason, request.since]

    assert in_processes([run]) == [[None, number.name, 12.5]]


def test_a_signal_that_came_during_the_import_is_delivered_at_last() -> None:
    def run() -> tuple[bool, str]:
        signal.pthread_sigmask(
            signal.SIG_BLOCK, STOP_SIGNALS
        )  # as launch/job/launcher_script.py starts us
        os.kill(os.getpid(), signal.SIGUSR2)
        stop = SignalStop()
        before = stop.poll() is None
        request = stop.install().poll()
        return before, request.reason if request else ""

    assert in_processes([run]) == [(True, "SIGUSR2")]


def test_a_wish_without_a_signal_counts_like_one() -> None:
    def run() -> Callable[[], object] | str:
        stop = SignalStop()
        stop.request("cancelled")
        stop.install()
        os.kill(os.getpid(), signal.SIGTERM)
        request = stop.poll()
        return request.reason if request else ""

    assert in_processes([run]) == ["cancelled"]


def test_an_own_signal_tells_more_than_a_peers_wish() -> None:
    """It may come a step later, and its name decides what Slurm is asked."""

    def run() -> list[str]:
        stop = SignalStop().install()
        told = []
        for wish in (ANOTHER_RANK, "SIGUSR2", ANOTHER_RANK, "SIGTERM"):
            if wish == ANOTHER_RANK:
                stop.request(wish)
            else:
                os.kill(os.getpid(), signal.Signals[wish])
            request = stop.poll()
            told.append(request.reason if request else "")
        return told

    assert in_processes([run]) == [[ANOTHER_RANK, "SIGUSR2", "SIGUSR2", "SIGUSR2"]]


def test_what_takes_long_is_interrupted_and_what_came_before_too() -> None:
    def run() -> list[object]:
        stop = SignalStop().install()
        told: list[object] = [unless_stopped(stop, lambda: "in peace")]

        def signalled() -> str:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60.0)
            return "in vain"

        told.append(unless_stopped(stop, signalled))
        told.append(unless_stopped(stop, lambda: "too late"))
        os.kill(os.getpid(), signal.SIGTERM)  # outside: only noted
        return [*told, stop.count]

    assert in_processes([run]) == [["in peace", None, None, 2]]


def test_the_warning_before_a_time_limit_leaves_time_to_finish() -> None:
    def run() -> list[object]:
        stop = SignalStop().install()

        def warned() -> str:
            os.kill(os.getpid(), signal.SIGUSR2)
            return "finished"

        return [unless_stopped(stop, warned), stop.poll() is not None]

    assert in_processes([run]) == [["finished", True]]


def test_never_is_never() -> None:
    never = NeverStop()
    never.request("cancelled")
    assert never.poll() is None
    assert unless_stopped(never, lambda: 7) == 7


_IN_ONE_CALL = """
import ctypes, os, signal, threading, time
from mgpt4_hpc.train.stopping.stop import SignalStop, log_signals

def say_ready():
    state, asleep = f"/proc/self/task/{os.getpid()}/stat", 0
    while asleep < 20:  # in a row: the main thread is in its call and no longer on its way there
        with open(state) as file:
            asleep = asleep + 1 if file.read().rpartition(") ")[2][0] == "S" else 0
        time.sleep(0.01)
    print("ready", flush=True)

stop = SignalStop((signal.SIGTERM,))
log_signals(stop.signals, lambda line: print(line, stop.count, flush=True))
stop.install()
# Restarted after each signal, as a computation would be: it returns to Python only at the end.
signal.siginterrupt(signal.SIGTERM, False)
wait = ctypes.CDLL(None).sem_wait  # gives up the interpreter's lock, as torch's calls do
semaphore = ctypes.create_string_buffer(64)
threading.Thread(target=say_ready, daemon=True).start()
wait(semaphore)
"""


@pytest.mark.slow
def test_a_signal_is_logged_while_the_main_thread_is_in_one_long_call() -> None:
    """The handler waits for the call to end; the line in the log does not."""
    child = subprocess.Popen(
        [sys.executable, "-c", _IN_ONE_CALL], stdout=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.terminate()
        assert child.stdout.readline().endswith("=== SIGTERM arrived === 0\n")
    finally:
        child.kill()
        child.communicate()

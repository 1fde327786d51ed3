"""When to stop so as to be through by a deadline: late, because every step before it counts."""

from __future__ import annotations

import time
from collections.abc import Callable

from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.train.recorder import Recorder
from mgpt4_hpc.train.stopping.stop import StopRequest

DECISION_S = 10.0
"""To ask the scheduler why, and to go back into its queue, when it is busy."""

MARGIN_S = 5.0
"""Deadlines are known to the second, clocks of nodes differ, and a log wants to be written."""

SAVE_SAFETY = 3.0
"""The last save waits for one that is under way, and storage is busier when many are preempted."""

UNKNOWN_SAVE_S = 3.0
"""For a run that never saved."""


def latest_stop(deadline: float, save_s: float, step_s: float) -> float:
    """Until when steps may begin, seconds since the epoch.

    Args:
        deadline: when the process is killed, seconds since the epoch.
        save_s: the longest save so far; 0 if there was none.
        step_s: the longest step of late. Another one may have begun a moment too early.
    """
    save_s = SAVE_SAFETY * (save_s or UNKNOWN_SAVE_S)
    return deadline - (save_s + DECISION_S + MARGIN_S + 2.0 * step_s)


class Pacing:
    """Decides, on the first rank, whether the moment to stop has come; says so once.

    Args:
        recorder: records each new request.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        recorder: Recorder,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._recorder = recorder
        self._clock = clock
        self._known: StopRequest | None = None

    def is_due(self, request: StopRequest, save_s: float = 0.0, step_s: float = 0.0) -> bool:
        """Whether to stop before the next step, or before the next part of the start-up.

        Args:
            request: as it is now; its deadline may move.
            save_s: the longest save so far; 0 if there was none.
            step_s: the longest step of late; 0 if there was none.
        """
        until = 0.0
        if request.deadline is not None:
            until = latest_stop(request.deadline, save_s, step_s)
        now = self._clock()
        if request != self._known:
            self._known = request
            self._recorder.event(Kind.SIGNAL, name=request.reason, deadline=request.deadline)
            if until > now:
                self._recorder.say(
                    f"{request.reason}: the end is at {_at(request.deadline)}; training goes on "
                    f"until {_at(until)}"
                )
            else:
                why = "Slurm names no later end"
                if request.deadline is not None:
                    why = f"the end is at {_at(request.deadline)}, too near for another step"
                self._recorder.say(f"{request.reason}: stopping at once, {why}")
        return now >= until


def _at(moment: float | None) -> str:
    return time.strftime("%H:%M:%S", time.localtime(moment))

"""Staying until runs are over: ``mgpt4 submit --wait``."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.launch.runs.run_state import LAG_S, RunState
from mgpt4_hpc.launch.runs.status import RunOverview, look_at
from mgpt4_hpc.run_dir import RunDir

POLL_S = 5.0
"""Between two looks; kind to a controller that hundreds of users ask."""


def wait_for_runs(
    runs: Sequence[RunDir],
    *,
    say: Callable[[str], None],
    poll_s: float = POLL_S,
    look: Callable[[Sequence[RunDir]], Sequence[RunOverview]] = lambda runs: look_at(runs).rows,
) -> None:
    """Return when every run is finished.

    Args:
        runs: to wait for.
        say: called with each change of a run's state.
        poll_s: seconds between two looks.
        look: replaced by tests.

    Raises:
        MgptError: when none is left to wait for and some did not finish; it names them.
    """
    shown: dict[str, str] = {}
    since: dict[str, float] = {}
    while True:
        rows = look(runs)
        for row in rows:
            # Without the part that counts down, which is no news.
            news = row.text.partition(" in ")[0]
            if shown.get(row.path) != news:
                say(f"{row.name}: {row.text}")
                since[row.path] = time.monotonic()
            shown[row.path] = news
        if all(_is_over(row, time.monotonic() - since[row.path]) for row in rows):
            break
        time.sleep(poll_s)
    unfinished = [row for row in rows if row.state is not RunState.FINISHED]
    if unfinished:
        listed = "; ".join(f"{row.name}: {row.text}" for row in unfinished)
        raise MgptError(
            f"{len(unfinished)} of {len(rows)} runs did not finish: {listed}",
            fix=f"read its log: mgpt4 logs {shlex.quote(unfinished[0].path)}",
        )


def _is_over(row: RunOverview, unchanged_s: float) -> bool:
    if row.state.is_live or row.state is RunState.UNKNOWN:
        return False
    # Files and accounting lag behind a job that just changed.
    return row.state is not RunState.LOST or unchanged_s > LAG_S

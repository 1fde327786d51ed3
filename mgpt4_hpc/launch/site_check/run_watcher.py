"""Waiting for a run to get somewhere, and saying why it did not."""

from __future__ import annotations

import time
from collections.abc import Callable

from mgpt4_hpc.errors import MgptError
from mgpt4_hpc.formatting import duration, first_line
from mgpt4_hpc.launch.runs.logs import choose_log
from mgpt4_hpc.launch.runs.run_facts import read_facts
from mgpt4_hpc.launch.runs.run_state import RunState
from mgpt4_hpc.launch.runs.status import RunOverview, look_at_one
from mgpt4_hpc.launch.site_check.node_findings import node_findings
from mgpt4_hpc.launch.site_check.trial_run import Reporter
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.ledger import read_ledgers

POLL_S = 0.5
LOOK_EVERY_S = 2.0
"""Seconds between two questions to Slurm; the run's folder is read more often."""
DEAD_AFTER_S = 15.0
"""A run between two starts may look ended for a moment."""
_LAST_LINES = 4


class DrillFailed(MgptError):
    """The site did not do what a run needs; says what it did instead."""


class Watch:
    """Follows one run.

    Args:
        run: the run.
        reporter: shown its steps and each change of its state.
        patience_s: seconds to wait for each thing.
    """

    def __init__(self, run: RunDir, reporter: Reporter, patience_s: float) -> None:
        self.run = run
        self.patience_s = patience_s
        self._reporter = reporter
        self._told = ""
        self._seen: RunOverview | None = None
        self._looked_at = float("-inf")
        self._dead_since: float | None = None

    @property
    def attempts(self) -> list[Attempt]:
        """Its attempts as of now."""
        return read_ledgers(self.run.ledger)

    @property
    def nodes(self) -> str:
        """Where it runs, as Slurm writes it."""
        return self._look(fresh=True).nodes

    def until(self, what: str, reached: Callable[[list[Attempt]], bool]) -> list[Attempt]:
        """Wait; the attempts once ``reached`` says so of them.

        Args:
            what: names the awaited event in the failure.
            reached: asked again and again.

        Raises:
            DrillFailed: it ended before, or the patience did; with all that is known of why.
        """
        attempts = self.wait(reached, self.patience_s, what)
        if attempts is not None:
            return attempts
        seen = self._look(fresh=True)
        raise DrillFailed(
            f"{self.run.name} {what} within {duration(self.patience_s)}: {seen.text}",
            why=self._why_it_waits(seen),
            fix="--patience MINUTES waits longer; `squeue --start` shows when Slurm expects it",
        )

    def wait(
        self, reached: Callable[[list[Attempt]], bool], patience_s: float, what: str
    ) -> list[Attempt] | None:
        """As `until`, but None if only the patience ended."""
        deadline = time.monotonic() + patience_s
        while True:
            attempts = self.attempts
            if attempts:
                self._reporter.advance_to(attempts[-1].last_step, attempts[-1].cause)
            if reached(attempts):
                return attempts
            try:
                self._assert_alive(what)
            except DrillFailed:
                # It may have got there since its ledger was read.
                if reached(attempts := self.attempts):
                    return attempts
                raise
            if time.monotonic() > deadline:
                return None
            time.sleep(POLL_S)

    def _look(self, *, fresh: bool = False) -> RunOverview:
        now = time.monotonic()
        if self._seen is None or fresh or now - self._looked_at >= LOOK_EVERY_S:
            self._seen = look_at_one(self.run)
            self._looked_at = now
        return self._seen

    def _assert_alive(self, what: str) -> None:
        seen = self._look()
        state = f"{self.run.name}: {seen.text}"
        # A countdown is no news.
        if (key := state.rstrip("0123456789 smind")) != self._told:
            self._told = key
            self._reporter.say(state)
        if seen.state.is_live or seen.state is RunState.UNKNOWN:
            self._dead_since = None
            return
        now = time.monotonic()
        if self._dead_since is None:
            self._dead_since = now
        if seen.state is RunState.FINISHED or now - self._dead_since >= DEAD_AFTER_S:
            raise DrillFailed(
                f"{self.run.name} {what}: it ended ({seen.text})",
                why=self._why_it_ended(),
                fix=f"read its log: mgpt4 logs {self.run.path}",
            )

    def _why_it_waits(self, seen: RunOverview) -> str:
        if seen.state is RunState.PENDING:
            return f"job {seen.job_id} is in the queue; Slurm's word for why is in brackets"
        return self._why_it_ended()

    def _why_it_ended(self) -> str:
        facts = read_facts(self.run)
        reasons = [first_line(text) for text in (facts.failed, facts.resubmit) if text]
        faults = [
            f"{fault.get('what')}: {first_line(str(fault.get('reason')))}"
            for attempt in self.attempts
            for fault in attempt.faults
        ]
        # A marker counts the crashes; what they were stands in the ledger, or in the log alone.
        crashed = not reasons or facts.failed is not None
        reasons += [finding.what for finding in node_findings([self.run])]
        return "; ".join([*reasons, *(faults or ([_last_words(self.run)] if crashed else []))])


def _last_words(run: RunDir) -> str:
    """The end of rank 0's log."""
    log = choose_log(run, 0)
    if log is None:
        return "it left no log: its job never came to start a rank on a node that sees this folder"
    lines = log.path.read_text(encoding="utf-8", errors="replace").splitlines()
    return "its log ends with: " + " / ".join(map(first_line, lines[-_LAST_LINES:]))

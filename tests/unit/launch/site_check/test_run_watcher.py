"""What the drill waits for, and its explanation where that does not come."""

from __future__ import annotations

import pytest

from mgpt4_hpc.launch.runs.run_state import AnswerSource, RunState
from mgpt4_hpc.launch.runs.status import RunOverview
from mgpt4_hpc.launch.site_check import run_watcher
from mgpt4_hpc.launch.site_check.run_watcher import DrillFailed, Watch
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import Ledger


class Silent:
    """A reporter that remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)

    def begin(self, what: str, total: int) -> None: ...

    def advance_to(self, done: int, note: str = "") -> None: ...


def seen(run: RunDir, state: RunState, text: str) -> RunOverview:
    unknown = dict.fromkeys(RunOverview.__dataclass_fields__)
    return RunOverview(
        **{**unknown, "name": run.name, "state": state, "text": text, "job_id": "17",
           "source": AnswerSource.SQUEUE, "nodes": "node1", "step": 0}
    )  # fmt: skip


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_watcher, "POLL_S", 0.0)
    monkeypatch.setattr(run_watcher, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(run_watcher, "DEAD_AFTER_S", 0.0)


def watch(
    monkeypatch: pytest.MonkeyPatch, run: RunDir, *states: tuple[RunState, str]
) -> tuple[Watch, Silent]:
    left = list(states)

    def look(_: RunDir) -> RunOverview:
        return seen(run, *(left.pop(0) if len(left) > 1 else left[0]))

    monkeypatch.setattr(run_watcher, "look_at_one", look)
    reporter = Silent()
    return Watch(run, reporter, patience_s=0.05), reporter


@pytest.mark.usefixtures("quick")
def test_what_it_waits_for(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    follower, reporter = watch(
        monkeypatch,
        run,
        (RunState.PENDING, "eligible in 9 s"),
        (RunState.PENDING, "eligible in 8 s"),
        (RunState.PENDING, "pending (Resources)"),
    )
    with pytest.raises(DrillFailed, match=r"did not start within .*pending \(Resources\)"):
        follower.until("did not start", bool)
    # A countdown is told once.
    assert len(reporter.said) == 2


@pytest.mark.usefixtures("quick")
def test_why_it_ended(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    follower, _ = watch(monkeypatch, run, (RunState.FAILED, "failed"))
    with pytest.raises(DrillFailed, match="never came to start a rank"):
        follower.until("did not start", lambda _: False)
    (run.slurm / "17_0_log.out").write_text("first\n" * 9 + "ImportError: no torch\n")
    with pytest.raises(DrillFailed, match="ImportError: no torch"):
        follower.until("did not start", lambda _: False)
    ledger = Ledger(run.ledger, 1)
    ledger.event(Kind.FAULT, what="DataError", reason="no shard\nat all")
    ledger.close()
    with pytest.raises(DrillFailed, match="DataError: no shard") as failed:
        follower.until("did not start", lambda _: False)
    assert failed.value.why == "DataError: no shard"
    run.failed.write_text("the loss is hopeless\n")
    with pytest.raises(DrillFailed) as failed:
        follower.until("did not start", lambda _: False)
    assert failed.value.why == "the loss is hopeless; DataError: no shard"


@pytest.mark.usefixtures("quick")
def test_a_slurm_that_is_silent_for_a_while(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    follower, _ = watch(monkeypatch, run, (RunState.UNKNOWN, "?"), (RunState.RUNNING, "running"))
    asked = iter((False, False, True))
    assert follower.until("did not start", lambda _: next(asked)) == []
    assert follower.nodes == "node1"


@pytest.mark.usefixtures("quick")
def test_it_got_there_between_two_looks(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its ledger is read before its state: by then it may have finished."""
    follower, _ = watch(monkeypatch, run, (RunState.FINISHED, "finished"))
    asked = iter((False, True))
    assert follower.until("did not finish", lambda _: next(asked)) == []
    asked = iter((False, False))
    with pytest.raises(DrillFailed, match="it ended"):
        follower.until("did not finish", lambda _: next(asked))


def test_between_two_starts_it_may_look_ended(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_watcher, "POLL_S", 0.0)
    monkeypatch.setattr(run_watcher, "LOOK_EVERY_S", 0.0)
    follower, _ = watch(monkeypatch, run, (RunState.STOPPED, "ended"), (RunState.PENDING, "back"))
    asked = iter((False, False, False, True))
    assert follower.until("did not come back", lambda _: next(asked)) == []

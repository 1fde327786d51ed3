"""The drill's judgement, its choice of how to take the nodes, and its explanations.

The drill itself is in tests/slurm/test_site_check.py.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mgpt4_hpc.errors import PreflightError, SlurmRejected, SlurmUnreachable
from mgpt4_hpc.launch.runs.run_state import RunState, Source
from mgpt4_hpc.launch.runs.status import RunOverview
from mgpt4_hpc.launch.site_check import drill, preemptor, run_watcher
from mgpt4_hpc.launch.site_check.drill import _faults
from mgpt4_hpc.launch.site_check.preemptor import Preemptor, choose_preemptor, count_nodes
from mgpt4_hpc.launch.site_check.run_watcher import DrillFailed, Watch
from mgpt4_hpc.launch.slurm.cluster import parse_qos
from mgpt4_hpc.launch.slurm.commands import JobFacts
from mgpt4_hpc.launch.submit.submit_run import Submitted
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.attempts import Attempt
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.ledger import Ledger
from tests.unit.launch.site_check.test_bit_identity import WEIGHT, change, make
from tests.unit.launch.site_check.test_doctor_slurm import site

STRUCK = Attempt(1, nodes=["node1"], cause="preempted", last_step=80, ended=True)
AGAIN = Attempt(2, nodes=["node2"], cause="finished", restored_step=80, last_step=300)


def faults(root: Path, struck: Attempt = STRUCK, again: Attempt = AGAIN) -> list[str]:
    one, two = make(root, "one"), make(root, "two")
    return _faults(one, two, struck, again, [struck, again])


def test_a_green_drill_has_no_fault(tmp_path: Path) -> None:
    assert faults(tmp_path) == []


@pytest.mark.parametrize(
    ("struck", "again", "expected"),
    [
        (STRUCK, replace(AGAIN, restored_step=0), "the checkpoint of step 80 was lost"),
        (STRUCK, replace(AGAIN, restored_step=75), "5 steps were lost"),
        (replace(STRUCK, cause="crashed"), AGAIN, "ended as 'crashed'"),
    ],
)
def test_a_promise_that_did_not_hold(
    tmp_path: Path, struck: Attempt, again: Attempt, expected: str
) -> None:
    (told,) = faults(tmp_path, struck, again)
    assert expected in told


def test_other_bits_on_other_nodes(tmp_path: Path) -> None:
    one, two = make(tmp_path, "one"), make(tmp_path, "two")
    change(two, "projector.safetensors", bias=WEIGHT[0], weight=WEIGHT + 1)
    told = _faults(one, two, STRUCK, AGAIN, [STRUCK, AGAIN])
    assert "weight differs in 6 of 6" in told[0]
    assert "node1, node2" in told[1] and "constraint" in told[1]


@pytest.mark.parametrize(("restarts", "faults"), [(1, 0), (2, 1)])
def test_a_finished_run_that_starts_once_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, restarts: int, faults: int
) -> None:
    facts = JobFacts("RUNNING", "None", restarts, None, "", 0.0, None, True)
    monkeypatch.setattr(drill, "job_facts", lambda job_id: facts)
    order = drill.DrillOrder(tmp_path, executor="slurm")
    job = Submitted(RunDir(tmp_path), "slurm", "17")
    last = replace(AGAIN, restart_count=1)
    told = drill._Drill(order, Silent(), {})._started_again(job, last)
    assert len(told) == faults and all("started again after" in fault for fault in told)


# -- how the nodes are taken ------------------------------------------------------------------


class Slurm:
    """Takes every job but those for partitions that it refuses."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.calls: list[list[str]] = []

    def __call__(self, command: list[str]) -> str:
        self.calls.append(command)
        for name in self.refused:
            if f"--partition={name}" in command:
                raise SlurmRejected("`sbatch` was refused: Invalid account\nmore")
        return "17;devcluster\n" if "--parsable" in command else "node1\nnode2\n"


def chosen(
    monkeypatch: pytest.MonkeyPatch, slurm: Slurm, partition: str | None, by: str = "auto"
) -> Preemptor:
    monkeypatch.setattr(preemptor, "run_slurm", slurm)
    monkeypatch.setattr(preemptor, "read_slurm_site", site)
    return choose_preemptor(by, partition, account="mine", qos=None)


def test_preempted_where_the_user_may(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm = Slurm()
    its_preemptor = chosen(monkeypatch, slurm, "a100-preempt")
    assert its_preemptor.partition == "a100" and "a100" in its_preemptor.text
    assert its_preemptor.preempt("node[1-2]") == "17"
    command = slurm.calls[-1]
    for word in ("--nodelist=node[1-2]", "--nodes=2", "--exclusive", "--account=mine"):
        assert word in command
    assert chosen(monkeypatch, slurm, "a100-preempt", "requeue").partition is None


def test_requeued_elsewhere_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    # The site's default partition is a100, which nobody preempts.
    for name, expected in (
        ("a100", "nobody may preempt your jobs of a100"),
        (None, "nobody may preempt your jobs of a100"),
    ):
        assert chosen(monkeypatch, Slurm(), name).why == expected
    refused = chosen(monkeypatch, Slurm("a100"), "a100-preempt")
    assert refused.partition is None
    assert refused.why == "you may not submit to partition a100: Invalid account"
    with pytest.raises(PreflightError, match="nobody may preempt"):
        chosen(monkeypatch, Slurm(), "a100", "preemption")


def test_preempted_by_a_higher_qos(monkeypatch: pytest.MonkeyPatch) -> None:
    by_qos = site(config=("preempt/partition_prio", "preempt/qos"))
    slurm = Slurm()
    monkeypatch.setattr(preemptor, "run_slurm", slurm)
    monkeypatch.setattr(preemptor, "read_slurm_site", lambda: by_qos)
    assert "nobody" in choose_preemptor("auto", "a100", account=None, qos=None).why
    by_qos = replace(by_qos, qos=parse_qos("normal||cluster|00:00:00\nurgent|normal|cluster|"))
    its_preemptor = choose_preemptor("auto", "a100", account=None, qos=None)
    assert its_preemptor.where == "to partition a100 with QOS urgent"
    its_preemptor.preempt("node1")
    assert "--qos=urgent" in slurm.calls[-1] and "--partition=a100" in slurm.calls[-1]


def test_settings_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent() -> None:
        raise SlurmUnreachable("it is down")

    monkeypatch.setattr(preemptor, "read_slurm_site", silent)
    assert "it is down" in choose_preemptor("auto", "a100", account=None, qos=None).why


def test_nodes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preemptor, "run_slurm", Slurm())
    assert (count_nodes("node1"), count_nodes("node[1-2]"), count_nodes("a,b")) == (1, 2, 2)


# -- waiting ----------------------------------------------------------------------------------


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
           "source": Source.SQUEUE, "nodes": "node1", "step": 0}
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

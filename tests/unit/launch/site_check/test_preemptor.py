"""How the drill takes the nodes of its run: which partition or QOS may, and why none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mgpt4_hpc.errors import PreflightError, SlurmRejected, SlurmUnreachable
from mgpt4_hpc.launch.site_check import preemptor
from mgpt4_hpc.launch.site_check.preemptor import Preemptor, choose_preemptor, count_nodes
from mgpt4_hpc.launch.slurm import commands
from mgpt4_hpc.launch.slurm.cluster import parse_qos
from tests.unit.launch.site_check.recorded_sites import site


class Slurm:
    """Takes every job but those for partitions that it refuses."""

    def __init__(self, *refused: str) -> None:
        self.refused = refused
        self.calls: list[list[str]] = []

    def __call__(self, command: list[str], **_: object) -> str:
        self.calls.append(command)
        for name in self.refused:
            if f"--partition={name}" in command:
                raise SlurmRejected("`sbatch` was refused: Invalid account\nmore")
        return "17;devcluster\n" if "--parsable" in command else "node1\nnode2\n"


def chosen(
    monkeypatch: pytest.MonkeyPatch, slurm: Slurm, partition: str | None, by: str = "auto"
) -> Preemptor:
    monkeypatch.setattr(commands, "run_slurm", slurm)
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
    monkeypatch.setattr(commands, "run_slurm", slurm)
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
    monkeypatch.setattr(commands, "run_slurm", Slurm())
    assert (count_nodes("node1"), count_nodes("node[1-2]"), count_nodes("a,b")) == (1, 2, 2)

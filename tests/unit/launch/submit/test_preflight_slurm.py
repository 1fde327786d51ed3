"""Whether Slurm would take a job, judged from what its commands print; all faults at once."""

from __future__ import annotations

from typing import Any

import pytest

from mgpt4_hpc.config.schema import LaunchConfig
from mgpt4_hpc.errors import SlurmRejected, SlurmUnreachable
from mgpt4_hpc.launch.slurm import commands
from mgpt4_hpc.launch.submit.preflight_slurm import (
    _spread,
    ask_cluster,
    nodes_for,
    task_faults,
)
from tests.unit.launch.submit.preflight_slurm_cases import (
    CONFIG,
    answering,
    cluster,
    faults_of,
    findings_of,
)


@pytest.fixture(autouse=True)
def _node_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``scontrol show hostnames`` has them."""
    names = {"n[2,7]": "n2\nn7\n", "n[1-2]": "n1\nn2\n"}
    monkeypatch.setattr(commands, "run_slurm", lambda asked: names.get(asked[-1], asked[-1]))


def test_what_fits_has_no_faults() -> None:
    assert findings_of(account="mine", qos="normal", gpu_type="a100") == ([], [])
    assert findings_of(account="MINE", nodes=2, gpus=8) == ([], []), "Slurm writes them small"


@pytest.mark.parametrize(
    ("launch", "told"),
    [
        ({"partition": "a10"}, "partition 'a10' does not exist: use one of a100, cpu, lab"),
        ({"signal_before_s": 7200, "time_min": 120},
         "launch.signal_before_s 7200 is not below the time limit, --time 02:00:00 = 7200 s: the "
         "job would be told to stop as it starts: --set signal_before_s=120, or a longer --time"),
        ({"time_min": 1}, "--set signal_before_s=15, or a longer --time"),
        ({"partition": "old"}, "partition old is DOWN"),
        ({"time_min": 4 * 1440},
         "partition a100 allows --time 1-00:00:00 at most, the job asks for 4-00:00:00"),
        ({"gpus": 12, "nodes": 3},
         "partition a100 has 2 nodes, --nodes asks for 3: --nodes 2 is the most"),
        ({"partition": "cpu"}, "partition cpu has no GPUs"),
        ({"gpu_type": "v100"}, "launch.gpu_type 'v100' is not in partition a100: use one of a100"),
        ({"gpus": 8}, "a node of partition a100 has 4 GPUs at most, the job asks for 8 on each: "
         "--nodes 2 spreads them"),
        ({"gpus": 64}, "the job asks for 64 on each: --gpus 64 fits on no number of its nodes, "
         "--gpus 8 --nodes 2 is the most"),
        ({"cpus_per_gpu": 17}, "0 nodes of partition a100 have 4 GPUs and 68 cores"),
        ({"partition": "lab", "account": "mine", "gpus": 1},
         "partition lab does not take account mine: use one of other"),
        ({"partition": "lab", "qos": "normal", "gpus": 1},
         "partition lab does not take QOS normal: use one of long"),
        ({"partition": "cpu", "account": "mine", "gpu_request": "none"},
         "partition cpu does not take account mine"),
        ({"account": "other"}, "account 'other' is none of yours: use one of mine"),
        ({"account": "mine", "qos": "high"},
         "QOS 'high' is none of yours of account mine: use one of normal, short"),
        ({"constraint": "[80*2&ib]"},
         "--constraint [80*2&ib]: no node of partition a100 has the feature '80': use one of 80g, "
         "ib; did you mean 80g?"),
        ({"partition": "lab", "gpus": 1, "sbatch": {"constraint": "ib"}},
         "--sbatch constraint ib: no node of partition lab has the feature 'ib': leave --sbatch "
         "constraint out, none has any"),
        ({"exclude": "n[2,7]"},
         "--exclude n[2,7]: there is no node 'n7' in partition a100: use some of n1,n2"),
        ({"sbatch": {"nodelist": "n3"}},
         "--sbatch nodelist n3: there is no node 'n3' in partition a100"),
        ({"qos": "short", "time_min": 120},
         "QOS short allows --time 01:00:00 at most, the job asks for 02:00:00"),
    ],
)  # fmt: skip
def test_what_slurm_would_refuse_is_told_with_what_there_is(
    launch: dict[str, Any], told: str
) -> None:
    faults = faults_of(**launch)
    assert len(faults) == 1 and told in faults[0], faults


@pytest.mark.parametrize(
    ("gpus", "per_node", "told"),
    [
        (8, [4, 4], "--nodes 2 spreads them"),
        (10, [4, 4, 4, 4, 4], "--nodes 5 spreads them"),  # three would hold uneven numbers
        (10, [4, 4, 4], "--gpus 12 --nodes 3 is the most"),
        (12, [8, 2, 2, 2], "--gpus 8 --nodes 1 is the most"),
        (9, [4, 4, 0], "--gpus 8 --nodes 2 is the most"),
    ],
)
def test_the_advice_about_nodes_can_be_followed(gpus: int, per_node: list[int], told: str) -> None:
    assert _spread(gpus, per_node).endswith(told)


def test_an_unknown_partition_does_not_hide_that_none_has_the_gpus() -> None:
    assert len(faults_of(partition="a10", gpus=8)) == 1, "lab has a node of eight"
    unknown, *others = faults_of(partition="a10", gpus=40)
    assert "'a10' does not exist" in unknown
    assert [fault.partition(" at most")[0] for fault in others] == [
        "a node of partition a100 has 4 GPUs",
        "a node of partition lab has 8 GPUs",
        "partition cpu has no GPUs",
    ]


@pytest.mark.parametrize(
    ("launch", "gpus", "nodes"),
    [
        ({}, 4, 1), ({}, 8, 2), ({}, 6, 2), ({}, 16, None), ({"nodes": 2}, 4, 2),
        ({"nodes": 3}, 4, 1), ({"partition": "a10"}, 8, 1),
        ({"gpu_request": "none", "nodes": 2}, 16, 2),
    ],
)  # fmt: skip
def test_over_how_many_nodes_gpus_spread(
    launch: dict[str, Any], gpus: int, nodes: int | None
) -> None:
    wanted = LaunchConfig.model_validate({"partition": "a100"} | launch)
    assert nodes_for(cluster().site, wanted, gpus) == nodes


def test_features_and_nodes_that_there_are_have_no_faults() -> None:
    assert faults_of(constraint="80g&ib|[80g*1]", exclude="n3") == [], "n3 is elsewhere"
    assert faults_of(exclude="/a/file/of/names", sbatch={"nodelist": "n[1-2]"}) == []


def test_a_sweep_may_be_too_large_for_an_array() -> None:
    assert faults_of(tasks=10) == []
    assert "has 11 runs, this site's job arrays have at most 10" in faults_of(tasks=11)[0]


def test_all_faults_at_once() -> None:
    faults = faults_of(
        partition="a100,a10", time_min=9999, account="other", qos="high", tasks=99, gpu_type="v100"
    )
    assert len(faults) == 6


def test_accounts_that_nobody_enforces_are_only_mentioned() -> None:
    lax = CONFIG.replace("associations,limits,qos", "none")
    faults, notes = findings_of(cluster(lax), account="other", qos="high")
    assert faults == []
    assert [note.partition(" is ")[0] for note in notes] == ["account 'other'", "QOS 'high'"]


def test_who_belongs_to_no_account_learns_it() -> None:
    assert "belongs to no account" in faults_of(cluster(associations=()))[0]


# -- asking ------------------------------------------------------------------------------------


def test_without_accounting_nobody_asks_for_accounts(monkeypatch: pytest.MonkeyPatch) -> None:
    config = CONFIG.replace("accounting_storage/slurmdbd", "accounting_storage/none")
    asked = answering(monkeypatch, config=config.replace("associations,limits,qos", "none"))
    seen = ask_cluster()
    assert not any(command[0] == "sacctmgr" for command in asked)
    assert findings_of(seen, account="any", qos="any") == ([], [])


def test_accounting_that_is_down_is_said_and_stops_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answering(monkeypatch, associations=SlurmUnreachable("slurmdbd does not answer"))
    faults, notes = findings_of(ask_cluster(), account="any")
    assert faults == []
    assert notes == ["account and QOS not checked: slurmdbd does not answer"]


def test_a_site_that_hides_itself_is_left_to_slurm(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, node=SlurmRejected("Access denied"))
    faults, notes = findings_of(ask_cluster(), partition="any")
    assert (faults, len(notes)) == ([], 1)


def test_a_controller_that_does_not_answer_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, config=SlurmUnreachable("down"))
    with pytest.raises(SlurmUnreachable):
        ask_cluster()


def test_where_users_see_no_partition_slurm_is_left_to_judge(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answering(monkeypatch, partition="No partitions in the system\n", node="")
    assert task_faults(None, gpus=1, time_min=60) == task_faults("a100", gpus=1, time_min=60) == []
    assert "a100" not in "".join(faults_of(ask_cluster(), partition="a100"))

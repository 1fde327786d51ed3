"""What a site's settings mean, read from what real clusters of Slurm 22.05 printed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mgpt4_hpc.launch.site_check import doctor_slurm
from mgpt4_hpc.launch.site_check.doctor_slurm import (
    ask_associations,
    partition_findings,
    predict,
    site_findings,
)
from mgpt4_hpc.launch.site_check.finding import Level
from mgpt4_hpc.launch.slurm import accounting
from mgpt4_hpc.launch.slurm.accounting import Association
from mgpt4_hpc.launch.slurm.cluster import SlurmSite, parse_node, parse_qos
from tests.unit.launch.site_check.recorded_sites import site, told


def preempted(where: SlurmSite, partition: str = "a100-preempt") -> str:
    return predict(where, where.partitions[partition], []).happens["preempted"]


def test_a_recorded_site() -> None:
    found = site()
    assert (found.version, found.preempt_type, found.kill_wait_s) == (
        "22.05.8", "partition_prio", 30,
    )  # fmt: skip
    assert found.has_accounting and not found.sends_user_signal
    assert found.requeue_wait_s == 5
    assert "PowerPlugin" not in found.config and "Epilog" not in found.config
    partition = found.partitions["a100-preempt"]
    assert (partition.grace_s, partition.tier, partition.max_time_s) == (20, 1, 172800)
    assert partition.gpu_types == {"a100": 16}
    assert [other.name for other in found.preemptors(partition)] == ["a100"]
    assert found.preemptors(found.partitions["a100"]) == []


def test_a_healthy_site_has_no_warning() -> None:
    found = site()
    findings = site_findings(found)
    for partition in found.partitions.values():
        findings += partition_findings(found, partition, [Association("devaccount")])
    assert {one.level for one in findings} <= {Level.OK, Level.NOTE}, told(findings)


def test_with_grace() -> None:
    sentence = preempted(site())
    assert "a job of partition a100" in sentence
    assert "TERM and 20 s of grace, saves, requeues itself" in sentence
    assert preempted(site(), "a100").startswith("never")


def test_without_grace_and_accounting() -> None:
    found = site("noacc")
    assert "TERM and no grace, only 30 s (KillWait)" in preempted(found)
    assert "requeued by Slurm already" in preempted(found)
    mine, findings = ask_associations(found)
    assert mine == [] and "accounting is off" in told(findings, Level.NOTE)


def test_cancel_mode() -> None:
    assert "requeues itself, as Slurm would end it for good" in preempted(site("cancel"))


def test_the_jobs_own_signal() -> None:
    assert site("usersig").sends_user_signal
    assert "gets USR2 and 20 s" in preempted(site("usersig"))
    assert "its own signal (USR2)" in told(site_findings(site("usersig")))
    # From Slurm 23.02 on under another name.
    newer = site(config=("PreemptMode             = REQUEUE", "PreemptMode = REQUEUE\n"
                         "PreemptParameters       = send_user_signal"))  # fmt: skip
    assert newer.sends_user_signal


def test_suspending_costs_memory_and_no_work() -> None:
    found = site(partition=("PreemptMode=REQUEUE", "PreemptMode=GANG,SUSPEND"))
    assert "stands still" in preempted(found)
    findings = partition_findings(found, found.partitions["a100-preempt"], [])
    assert "keep their memory, and go on" in told(findings, Level.NOTE)


QOS = "normal||cluster|00:01:30\nurgent|normal,low|cluster|00:00:00\nlow||cancel|00:00:00\nx\n"


@pytest.mark.parametrize(
    ("qos", "expected"),
    [
        (None, "QOS urgent that needs its nodes: it gets TERM and 90 s of grace"),
        ("low", "PreemptMode=CANCEL"),
        ("urgent", "never"),
    ],
)
def test_preemption_by_qos(qos: str | None, expected: str) -> None:
    found = site(config=("preempt/partition_prio", "preempt/qos"))
    assert "could not be asked for" in preempted(found)
    assert "by a higher QOS" in told(site_findings(found))
    found = replace(found, qos=parse_qos(QOS))
    prognosis = predict(found, found.partitions["a100"], [], qos)
    assert expected in prognosis.happens["preempted"]


@pytest.mark.parametrize(
    ("old", "new", "expected", "level"),
    [
        ("KillWait                = 30", "KillWait = 5", "KillWait is 5 s", "warning"),
        ("JobRequeue              = 1", "JobRequeue = 0", "JobRequeue is 0", "note"),
        ("RequeueExit             = (null)", "RequeueExit = 70-76", "has 70, 71, 75", "warning"),
        ("RequeueExitHold         = (null)", "RequeueExitHold = 2,75", "has 75", "warning"),
        ("JobSubmitPlugins        = (null)", "JobSubmitPlugins = lua", "plugin (lua)", "note"),
        ("EnforcePartLimits       = ALL", "EnforcePartLimits       = NO", "waits for ever", "note"),
        (",cred_expire=5", "", "waits at least 2 min", "note"),
        ("preempt/partition_prio", "preempt/none", "nobody is preempted", "ok"),
        ("PreemptExemptTime       = 00:00:00", "PreemptExemptTime = 01:00:00", "first 01:00:00",
         "note"),
    ],
)  # fmt: skip
def test_settings_of_the_site(old: str, new: str, expected: str, level: str) -> None:
    findings = site_findings(site(config=(old, new)))
    assert expected in told(findings, Level(level)), told(findings)
    assert expected not in told(site_findings(site()))


@pytest.mark.parametrize(
    ("old", "new", "expected", "level"),
    [
        ("State=UP", "State=DRAIN", "its state is DRAIN", "fault"),
        ("AllowAccounts=ALL", "AllowAccounts=physics", "it is for physics", "fault"),
        ("AllowAccounts=ALL", "AllowAccounts=mine,x", "only some of your accounts", "note"),
        ("AllowAccounts=ALL", "DenyAccounts=mine,other", "none of your accounts", "fault"),
        ("AllowQos=ALL", "AllowQos=gpu", "for the QOS gpu, and you have none", "fault"),
        ("AllowQos=ALL", "AllowQos=normal,x", "QOS normal alone | --qos normal", "note"),
        ("MaxTime=2-00:00:00", "MaxTime=04:00:00", "4.0 h at most", "note"),
        ("ReqResv=NO", "ReqResv=YES", "need a reservation", "warning"),
        ("OverSubscribe=NO", "OverSubscribe=EXCLUSIVE", "nodes are given whole", "note"),
        ("GraceTime=20", "GraceTime=3", "GraceTime is 3 s", "warning"),
    ],
)
def test_settings_of_a_partition(old: str, new: str, expected: str, level: str) -> None:
    mine = [Association("mine", qos=frozenset({"normal"})), Association("other")]
    for found, seen in ((site(partition=(old, new)), True), (site(), False)):
        findings = partition_findings(found, found.partitions["a100-preempt"], mine)
        assert (expected in told(findings, Level(level))) is seen, told(findings)


def test_who_may_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = site(partition=("AllowGroups=ALL", "AllowGroups=wheels"))
    for euid, groups, faults in ((1000, {"users"}, 1), (1000, {"wheels"}, 0), (0, {"root"}, 0)):
        monkeypatch.setattr("os.geteuid", lambda euid=euid: euid)
        monkeypatch.setattr(doctor_slurm, "_own_groups", lambda groups=groups: groups)
        findings = partition_findings(found, found.partitions["a100"], [])
        assert sum(one.level is Level.FAULT for one in findings) == faults


def test_nodes() -> None:
    down = site(nodes=("State=IDLE", "State=DOWN*"))
    findings = partition_findings(down, down.partitions["a100"], [])
    assert "no node of it is usable (DOWN*)" in told(findings, Level.FAULT)
    bare = site(nodes=("Gres=gpu:a100:4", "Gres=(null)"))
    assert "without GPUs" in told(partition_findings(bare, bare.partitions["a100"], []))
    mixed = parse_node("NodeName=n Gres=gpu:a100:4(S:0-1),gpu:h100:2,mps:9 State=MIXED+DRAIN")
    assert mixed.gpus == {"a100": 4, "h100": 2} and not mixed.is_usable
    assert parse_node("NodeName=n Gres=gpu:8 State=IDLE+CLOUD+POWERED_DOWN").gpus == {"": 8}


def test_the_settings_to_use() -> None:
    found = site(partition=("MaxTime=2-00:00:00", "MaxTime=00:04:00"))
    told_settings = predict(found, found.partitions["a100"], []).settings
    assert told_settings == {
        "launch.partition": "a100",
        "launch.time_min": 4,
        "launch.signal_before_s": 60,
        "launch.cpus_per_gpu": 8,
    }
    small = site(nodes=("CPUEfctv=64", "CPUEfctv=16"))
    assert predict(small, small.partitions["a100"], []).settings["launch.cpus_per_gpu"] == 4
    closed = site(partition=("AllowAccounts=ALL", "AllowAccounts=b,c"))
    mine = [Association("a"), Association("c")]
    settings = predict(closed, closed.partitions["a100"], mine).settings
    assert settings["launch.account"] == "c"


@pytest.mark.parametrize(
    ("partition", "config", "sentence"),
    [
        ("NONE", "0 min", "no step"),
        ("NONE", "5 min", "kill comes 5 min after"),
        ("3", "5 min", "kill comes 3 min after"),
        ("UNLIMITED", "0 min", "may run on beyond"),
    ],
)
def test_running_over_the_limit(partition: str, config: str, sentence: str) -> None:
    found = site(
        config=("OverTimeLimit           = 0 min", f"OverTimeLimit = {config}"),
        partition=("OverTimeLimit=NONE", f"OverTimeLimit={partition}"),
    )
    assert sentence in predict(found, found.partitions["a100"], []).happens["time limit"]


@pytest.mark.parametrize(
    ("answer", "level", "expected"),
    [("dev||normal\n", "ok", "you may charge: dev"), ("", "fault", "belongs to no account")],
)
def test_accounts(monkeypatch: pytest.MonkeyPatch, answer: str, level: str, expected: str) -> None:
    monkeypatch.setattr(accounting, "run_slurm", lambda *_: answer)
    _, findings = ask_associations(site())
    assert expected in told(findings, Level(level))


@pytest.mark.parametrize(
    ("version", "marks"),
    [("22.05.8", False), ("23.11.11", False), ("24.05.0", True), ("24.11.5", True),
     ("25.11.2-1", True), ("26.05.3", True), ("26.05.5", False), ("?", False)],
)  # fmt: skip
def test_a_slurm_that_counts_an_end_as_a_preemption_is_named(version: str, marks: bool) -> None:
    where = site(config=("= 22.05.8", f"= {version}"))
    assert ("another preemption" in told(site_findings(where))) is marks
    without_grace = site(
        config=("= 22.05.8", f"= {version}"), partition=("GraceTime=20", "GraceTime=0")
    )
    assert "another preemption" not in told(site_findings(without_grace))

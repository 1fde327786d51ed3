"""What a Slurm site's settings mean for a run: findings, and what will happen to a job."""

from __future__ import annotations

import grp
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mgpt4_hpc.config.schema import LaunchConfig, TrainConfig
from mgpt4_hpc.errors import EXIT_RESUMABLE, BadNode, FatalTrainingError, MgptError
from mgpt4_hpc.formatting import duration, first_line
from mgpt4_hpc.launch.job.requeue_policy import SIGNAL_EARLY_S
from mgpt4_hpc.launch.site_check.finding import Finding, Findings
from mgpt4_hpc.launch.slurm.accounting import (
    Association,
    read_associations,
    require_sacct,
    slurm_user,
)
from mgpt4_hpc.launch.slurm.cluster import Partition, SlurmSite
from mgpt4_hpc.launch.slurm.sbatch import refusal_of

SAVING_S = 10
"""Seconds that the step in progress and its save should have between a signal and the kill."""

_DEFAULT: LaunchConfig = LaunchConfig()
_SAVE_EVERY_S: float = TrainConfig.model_fields["save_every_s"].default
_TEST_MINUTES = 10


@dataclass(frozen=True)
class Prognosis:
    """What will happen to a run in one partition.

    Attributes:
        partition: its name.
        happens: event to sentence.
        settings: settings to use there.
    """

    partition: str
    happens: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)


# -- the site ---------------------------------------------------------------------------------


def site_findings(site: SlurmSite) -> list[Finding]:
    """What the configuration of the whole site means."""
    findings = Findings("Slurm")
    findings.ok(f"Slurm {site.version} of cluster {site.config.get('ClusterName', '?')} answers")
    _preemption_findings(site, findings)
    _grace_mark_findings(site, findings)
    if site.kill_wait_s < SAVING_S:
        findings.warn(
            f"KillWait is {site.kill_wait_s} s: after a time limit, a cancel or a preemption "
            "without grace a step in progress and its save may not be done by then",
            f"nothing of it is lost but up to train.save_every_s ({_SAVE_EVERY_S:.0f} s) of steps; "
            "take smaller steps, or ask the support for KillWait=30",
        )
    else:
        findings.ok(f"KillWait is {site.kill_wait_s} s: time for a save where there is no grace")
    if site.config.get("JobRequeue") == "0":
        findings.note(
            "JobRequeue is 0: jobs do not come back unless they ask; mgpt4 asks (--requeue)"
        )
    else:
        findings.ok("JobRequeue is 1: a user may requeue his job")
    _exit_code_findings(site, findings)
    if plugins := site.config.get("JobSubmitPlugins"):
        findings.note(
            f"a site plugin ({plugins}) may change jobs as they are submitted",
            "`mgpt4 drill` shows whether a run still comes back",
        )
    if site.config.get("EnforcePartLimits", "NO").upper() in ("NO", "0"):
        findings.note(
            "EnforcePartLimits is NO: a job beyond a partition's limits is not refused but waits "
            "for ever; `mgpt4 submit` checks time and nodes itself"
        )
    wait_s = site.requeue_wait_s
    findings.note(f"a requeued job waits at least {duration(wait_s)} before it may start again")
    _limit_findings(site, findings)
    return findings


def _preemption_findings(site: SlurmSite, findings: Findings) -> None:
    kind, mode = site.preempt_type, site.config.get("PreemptMode", "OFF")
    if kind == "none" or mode.upper() == "OFF":
        findings.ok("nobody is preempted on this cluster (PreemptType or PreemptMode is off)")
        return
    how = {"partition_prio": "by partitions with a higher tier", "qos": "by a higher QOS"}
    findings.ok(f"preemption is on, {how.get(kind, f'by {kind}')}, mode {mode}")
    if exempt := site.config.get("PreemptExemptTime", "00:00:00").replace("00:00:00", ""):
        findings.note(f"no job is preempted in its first {exempt} (PreemptExemptTime)")
    if site.sends_user_signal:
        findings.note("a preempted job gets its own signal (USR2) and not TERM: handled alike")


def _grace_mark_findings(site: SlurmSite, findings: Findings) -> None:
    """Whether this Slurm counts the end of a run that was preempted once as a preemption."""
    graces = {partition.grace_s for partition in site.partitions.values()}
    graces |= {qos.grace_s for qos in site.qos.values()}
    if site.keeps_grace_mark and any(graces):
        findings.note(
            f"Slurm {site.version} counts the end of a job that was preempted once, with a grace "
            "time, as another preemption: mgpt4 lets the jobs that wait for a run go before it "
            "ends, and `sacct` shows such a finished run as PREEMPTED, with exit code 0",
            "`mgpt4 drill` runs a chain of two and shows that it holds here",
        )


def _exit_code_findings(site: SlurmSite, findings: Findings) -> None:
    own = {EXIT_RESUMABLE, FatalTrainingError.exit_code, BadNode.exit_code}
    for name, means in (
        ("RequeueExit", "requeues a run that decided to end"),
        ("RequeueExitHold", "holds a run in the queue that decided to end"),
    ):
        caught = own & _exit_codes(site.config.get(name, ""))
        if caught:
            codes = ", ".join(map(str, sorted(caught)))
            findings.warn(
                f"{name} has {codes}, which are mgpt4's own exit codes: Slurm {means}",
                f"ask the support to take {codes} out of {name}",
            )


def _exit_codes(text: str) -> set[int]:
    codes: set[int] = set()
    for part in filter(None, text.replace(" ", "").split(",")):
        first, _, last = part.partition("-")
        if first.isdigit() and (last or first).isdigit():
            codes |= set(range(int(first), int(last or first) + 1))
    return codes


def _limit_findings(site: SlurmSite, findings: Findings) -> None:
    if (array := site.config.get("MaxArraySize", "")).isdigit():
        findings.ok(f"an array may have {int(array) - 1} tasks (MaxArraySize)")
    forgets = site.seconds("MinJobAge")
    if not site.has_accounting and forgets is not None and forgets < 60:
        findings.warn(
            f"ended jobs are forgotten after {forgets} s (MinJobAge), and nothing else remembers "
            "them: `mgpt4 submit --after` may find its predecessor gone",
            "submit both stages at once: --stage both",
        )


# -- accounting -------------------------------------------------------------------------------


def ask_associations(site: SlurmSite) -> tuple[Sequence[Association], list[Finding]]:
    """The accounts that this user may charge, and what there is to say about accounting."""
    findings = Findings("accounting")
    if not site.has_accounting:
        findings.note(
            "accounting is off: `sacct` knows nothing; mgpt4 asks squeue and the run's own folder"
        )
        return [], findings
    try:
        associations = read_associations()
        require_sacct()
    except MgptError as error:
        findings.warn(
            f"accounting is on and does not answer: {first_line(error.what)}",
            "submitting works; states of jobs that ended come from the run's folder meanwhile",
        )
        return [], findings
    enforced = "associations" in site.config.get("AccountingStorageEnforce", "")
    if associations:
        names = ", ".join(sorted({association.account for association in associations}))
        findings.ok(f"accounting is on; you may charge: {names}")
    elif enforced:
        findings.fault(
            f"user {slurm_user()} belongs to no account, and Slurm insists on one",
            "ask the support for an account, then set launch.account",
        )
    else:
        findings.ok("accounting is on; no account is needed")
    return associations, findings


# -- one partition ----------------------------------------------------------------------------


def partition_findings(
    site: SlurmSite, partition: Partition, associations: Sequence[Association]
) -> list[Finding]:
    """What one partition's settings mean."""
    findings = Findings(f"partition {partition.name}")
    if not partition.is_up:
        findings.fault(
            f"its state is {partition.record.get('State')}: jobs do not start",
            "wait for the support, or use another partition",
        )
    _permission_findings(partition, associations, findings)
    _node_findings(partition, findings)
    limit_s = partition.max_time_s
    if limit_s is not None and limit_s < _DEFAULT.time_min * 60:
        findings.note(
            f"jobs may run {duration(limit_s)} at most; the run goes on in the next attempt",
            f"--time {int(limit_s // 60)}",
        )
    if partition.record.get("ReqResv") == "YES":
        findings.warn("jobs need a reservation here", "--sbatch reservation=NAME")
    if partition.record.get("OverSubscribe") == "EXCLUSIVE":
        findings.note("nodes are given whole: ask for all GPUs of a node, you pay for them anyway")
    preemption_risk = site.preemption_risk(partition, own_qos(associations))
    if preemption_risk is not None and {"SUSPEND", "GANG"} & preemption_risk.modes:
        findings.note("preempted jobs are suspended, keep their memory, and go on where they were")
    elif preemption_risk is not None and 0 < preemption_risk.grace_s < SAVING_S:
        findings.warn(
            f"GraceTime is {preemption_risk.grace_s} s: too short for a step and its save",
            f"at worst train.save_every_s ({_SAVE_EVERY_S:.0f} s) of steps are done again",
        )
    return findings


def _permission_findings(
    partition: Partition, associations: Sequence[Association], findings: Findings
) -> None:
    if partition.record.get("RootOnly") == "YES" and os.geteuid() != 0:
        findings.fault("only root may submit to it", "use another partition")
    groups = partition.allows("Groups")
    own_groups = _own_groups()
    if groups is not None and not groups & own_groups and os.geteuid() != 0:
        findings.fault(
            f"it is for the groups {', '.join(sorted(groups))}, and you are in none of them",
            "use another partition, or ask the support",
        )
    accounts = {
        association.account
        for association in associations
        if association.partition in ("", partition.name)
    } - partition.denies("Accounts")
    allowed = partition.allows("Accounts")
    usable = accounts if allowed is None else accounts & allowed
    if associations and not usable:
        wanted = ", ".join(sorted(allowed)) if allowed else "others"
        findings.fault(
            f"none of your accounts may use it; it is for {wanted}",
            "use another partition, or ask the support for an account",
        )
    elif associations and usable < {association.account for association in associations}:
        findings.note(
            f"only some of your accounts may use it: {', '.join(sorted(usable))}",
            f"--account {min(usable)}",
        )
    qos = partition.allows("Qos")
    own_qos = frozenset[str]().union(*(association.qos for association in associations))
    if qos is not None:
        named = ", ".join(sorted(qos & own_qos or qos))
        if own_qos and not qos & own_qos:
            findings.fault(
                f"it is for the QOS {named}, and you have none of them", "ask the support"
            )
        else:
            findings.note(f"it is for the QOS {named} alone", f"--qos {min(qos & own_qos or qos)}")


def _own_groups() -> set[str]:
    names = set()
    for number in {os.getegid(), *os.getgroups()}:
        try:
            names.add(grp.getgrgid(number).gr_name)
        except KeyError:
            continue
    return names


def _node_findings(partition: Partition, findings: Findings) -> None:
    usable = [node for node in partition.nodes if node.is_usable]
    if not usable:
        states = ", ".join(sorted({node.state for node in partition.nodes})) or "it has none"
        findings.fault(f"no node of it is usable ({states})", "use another partition, or wait")
        return
    down = len(partition.nodes) - len(usable)
    lost = f"; {down} more are down or drained" if down else ""
    if not partition.has_gpus:
        findings.note(
            f"{len(usable)} nodes without GPUs{lost}: good for `mgpt4 drill --device cpu` alone"
        )
        return
    total = ", ".join(f"{n} {kind or 'GPU'}" for kind, n in sorted(partition.gpu_types.items()))
    most = max(node.num_gpus for node in usable)
    findings.ok(f"{len(usable)} usable nodes with {total}, up to {most} a node{lost}")


def accepts_finding(
    partition: Partition, account: str | None, qos: str | None, *, device: str
) -> Finding:
    """Whether Slurm would take a job there: nothing is submitted."""
    findings = Findings(f"partition {partition.name}")
    options = ["--requeue", f"--partition={partition.name}"]
    options += ["--nodes=1", "--ntasks=1", f"--time={_TEST_MINUTES}"]
    options += [f"--account={account}"] if account else []
    options += [f"--qos={qos}"] if qos else []
    options += ["--gpus-per-node=1"] if partition.has_gpus and device != "cpu" else []
    if refusal := refusal_of(options):
        findings.fault(
            f"Slurm would refuse a job of yours: {refusal}",
            "give --account and --qos as your site wants them, or use another partition",
        )
    else:
        findings.ok("Slurm would take a job of yours")
    return findings[0]


# -- what will happen -------------------------------------------------------------------------


def predict(
    site: SlurmSite,
    partition: Partition,
    associations: Sequence[Association],
    qos: str | None = None,
) -> Prognosis:
    """What will happen to a run in that partition (and QOS), and the settings for it."""
    settings = _settings(partition, associations)
    warned_s = settings["launch.signal_before_s"]
    back = f"and is back in the queue, where it waits at least {duration(site.requeue_wait_s)}"
    over_s = site.over_time_limit_s(partition)
    limit = "" if partition.max_time_s is None else f" of at most {duration(partition.max_time_s)}"
    beyond = (
        "; jobs here may run on beyond it"
        if over_s is None
        else f"; the kill comes {duration(over_s)} after it"
        if over_s
        else ""
    )
    return Prognosis(
        partition.name,
        {
            "preempted": _preempted(site, partition, qos or own_qos(associations), back),
            "time limit": (
                f"{warned_s} s before its limit{limit} (at most {SIGNAL_EARLY_S:.0f} s earlier) it "
                f"gets USR2, saves, requeues itself {back}{beyond}; no step is lost"
            ),
            "node failure": (
                f"Slurm puts it back by itself; at most {_SAVE_EVERY_S:.0f} s of steps are done "
                "again (train.save_every_s)"
            ),
            "cancelled": (
                f"it gets TERM, has {site.kill_wait_s} s to save, and stays away until "
                "`mgpt4 resume`; `mgpt4 cancel --save` waits for the save"
            ),
        },
        settings,
    )


def _preempted(site: SlurmSite, partition: Partition, qos: str, back: str) -> str:
    if site.preempt_type == "qos" and not site.qos:
        return (
            "by jobs of a QOS that may preempt its own, which could not be asked for: "
            "`sacctmgr show qos format=name,preempt,preemptmode,gracetime`"
        )
    preemption_risk = site.preemption_risk(partition, qos)
    if preemption_risk is None:
        return "never: nobody with a higher priority may take its nodes"
    who = f"a job of {' or '.join(preemption_risk.preemptors)} that needs its nodes"
    if {"SUSPEND", "GANG"} & preemption_risk.modes:
        return f"by {who}: it stands still, holding its memory, until that has ended"
    signal = "USR2" if site.sends_user_signal else "TERM"
    grace = preemption_risk.grace_s
    patience = f"{grace} s of grace" if grace else f"no grace, only {site.kill_wait_s} s (KillWait)"
    if "CANCEL" in preemption_risk.modes:
        back = f"requeues itself, as Slurm would end it for good (PreemptMode=CANCEL), {back}"
    elif grace:
        back = f"requeues itself {back}"
    else:
        back = f"was requeued by Slurm already {back}"
    return f"by {who}: it gets {signal} and {patience}, saves, {back}; no step is lost"


def own_qos(associations: Sequence[Association]) -> str:
    """The QOS that a job gets if none is named, as far as the user's associations show."""
    names = {name for association in associations for name in association.qos}
    return "normal" if "normal" in names or not names else min(names)


def _settings(partition: Partition, associations: Sequence[Association]) -> dict[str, Any]:
    settings: dict[str, Any] = {"launch.partition": partition.name}
    allowed = partition.allows("Accounts")
    accounts = {association.account for association in associations}
    if allowed is not None and accounts & allowed:
        settings["launch.account"] = min(accounts & allowed)
    limit_s = partition.max_time_s
    time_min = _DEFAULT.time_min if limit_s is None else min(_DEFAULT.time_min, int(limit_s // 60))
    settings["launch.time_min"] = max(1, time_min)
    # A warning that comes before half of a short job is done would waste it.
    settings["launch.signal_before_s"] = min(_DEFAULT.signal_before_s, max(1, time_min * 60 // 4))
    nodes = [node for node in partition.nodes if node.is_usable and node.num_gpus]
    if nodes:
        cores = min(node.cpus // node.num_gpus for node in nodes)
        settings["launch.cpus_per_gpu"] = max(1, min(_DEFAULT.cpus_per_gpu, cores))
        types = {kind for node in nodes for kind in node.gpus if kind}
        if len(types) > 1:
            settings["launch.gpu_type"] = max(types, key=lambda k: partition.gpu_types.get(k, 0))
    return settings

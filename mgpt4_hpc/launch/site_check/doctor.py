"""Everything that can be known of a site before a run is trusted to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mgpt4_hpc.errors import MgptError, SlurmUnreachable
from mgpt4_hpc.launch.site_check.doctor_folder import folder_findings
from mgpt4_hpc.launch.site_check.doctor_machine import gpu_findings, python_findings
from mgpt4_hpc.launch.site_check.doctor_slurm import (
    Prognosis,
    accepts_finding,
    ask_associations,
    partition_findings,
    predict,
    site_findings,
)
from mgpt4_hpc.launch.site_check.finding import Finding, Findings, Level
from mgpt4_hpc.launch.site_check.node_findings import node_findings
from mgpt4_hpc.launch.slurm import commands
from mgpt4_hpc.launch.slurm.accounting import Association
from mgpt4_hpc.launch.slurm.cluster import Partition, SlurmSite, read_slurm_site
from mgpt4_hpc.run_dir import list_runs

MOST_PARTITIONS = 6
"""Partitions looked at where none is named, those with GPUs first."""
_MOST_RUNS = 50
"""Newest runs, the logs of which are read."""


@dataclass(frozen=True)
class Report:
    """What the doctor found.

    Attributes:
        findings: in the order in which they are read best.
        prognoses: what will happen to a run, for each partition that was looked at.
        unreachable: set where Slurm is installed and does not answer.
    """

    findings: list[Finding]
    prognoses: list[Prognosis] = field(default_factory=list)
    unreachable: SlurmUnreachable | None = None

    def count(self, level: Level) -> int:
        """How many findings are of that level."""
        return sum(finding.level is level for finding in self.findings)


def examine(
    runs_dir: Path,
    *,
    partition: str | None = None,
    account: str | None = None,
    qos: str | None = None,
    device: str = "auto",
) -> Report:
    """Look at Slurm, the runs folder, Python and the GPUs; changes nothing that stays.

    Args:
        runs_dir: where run directories are or will be.
        partition: the one to look at; None for those that a run could use.
        account: of the job that Slurm is asked whether it would take it.
        qos: of the same job.
        device: "cpu" if runs are meant for CPUs.
    """
    has_slurm = commands.has_slurm()
    findings: list[Finding] = []
    prognoses: list[Prognosis] = []
    unreachable = None
    chosen: list[Partition] = []
    if not has_slurm:
        findings += _without_slurm(partition)
    else:
        try:
            site = read_slurm_site()
            associations, accounting = ask_associations(site)
            findings += [*site_findings(site), *accounting]
            chosen = choose(site, partition, findings)
            for candidate in chosen:
                findings += partition_findings(site, candidate, associations)
                findings += _accepts(candidate, associations, account, qos, device)
                prognoses.append(predict(site, candidate, associations, qos))
        except SlurmUnreachable as error:
            unreachable = error
            findings.append(Finding(Level.WARNING, "Slurm", error.what, error.fix))
        except MgptError as error:
            findings.append(Finding(Level.WARNING, "Slurm", error.what, error.fix))
    findings += folder_findings(runs_dir, shared=has_slurm)
    findings += node_findings(list_runs(runs_dir)[:_MOST_RUNS])
    findings += python_findings(shared=has_slurm)
    gpu_nodes = device != "cpu" and any(partition.has_gpus for partition in chosen)
    findings += gpu_findings(gpu_nodes=gpu_nodes)
    return Report(findings, prognoses, unreachable)


def choose(site: SlurmSite, wanted: str | None, findings: list[Finding]) -> list[Partition]:
    """The partitions to look at: the one named, or those that a run could use."""
    about_slurm = Findings("Slurm")
    known = site.partitions
    if wanted is not None:
        if wanted in known:
            return [known[wanted]]
        named = ", ".join(sorted(known)) or "none"
        about_slurm.fault(f"partition {wanted!r} does not exist", f"use one of: {named}")
        findings += about_slurm
        return []
    usable = [
        partition
        for partition in known.values()
        if partition.is_up and partition.record.get("Hidden") != "YES"
    ]
    with_gpus = [partition for partition in usable if partition.has_gpus] or usable
    with_gpus.sort(key=lambda partition: (not partition.is_default, partition.name))
    if not with_gpus:
        about_slurm.fault("no partition is up", "wait for the support")
    elif len(with_gpus) > MOST_PARTITIONS:
        rest = ", ".join(partition.name for partition in with_gpus[MOST_PARTITIONS:])
        about_slurm.note(
            f"{len(with_gpus)} partitions could be used; not looked at: {rest}", "-p NAME"
        )
    if with_gpus and not any(partition.is_default for partition in known.values()):
        about_slurm.note("no partition is the default: a run must name one", "--partition NAME")
    findings += about_slurm
    return with_gpus[:MOST_PARTITIONS]


def _accepts(
    partition: Partition,
    associations: Sequence[Association],
    account: str | None,
    qos: str | None,
    device: str,
) -> list[Finding]:
    # The reason is in the findings already, clearer than sbatch's.
    if not partition.is_up or not any(node.is_usable for node in partition.nodes):
        return []
    if account is None and (allowed := partition.allows("Accounts")) is not None:
        account = min(allowed & {association.account for association in associations}, default=None)
    return [accepts_finding(partition, account, qos, device=device)]


def _without_slurm(partition: str | None) -> list[Finding]:
    findings = Findings("Slurm")
    findings.note(
        "no Slurm on this machine (sbatch is not installed): runs start here, --executor local; "
        "TERM to a run's process saves and restarts it, Ctrl-C saves and ends it"
    )
    if partition is not None:
        findings.fault(f"--partition {partition} means nothing here", "log in to a submit node")
    return findings

"""How a drill takes its run's nodes away: by a job that may preempt it, or by a requeue."""

from __future__ import annotations

import re
from dataclasses import dataclass

from mgpt4_hpc.errors import MgptError, PreflightError
from mgpt4_hpc.formatting import first_line
from mgpt4_hpc.launch.slurm.cluster import Partition, SlurmSite, read_slurm_site
from mgpt4_hpc.launch.slurm.commands import hostnames
from mgpt4_hpc.launch.slurm.sbatch import refusal_of, submit

JOB_NAME = "mgpt4-drill-preempts"
DEFAULT_QOS = "normal"
"""What Slurm gives a job that names none, unless the site has set another."""
_MINUTES = 2


@dataclass(frozen=True)
class Preemptor:
    """What will be done to the run.

    Attributes:
        partition: of the job that will preempt it; None for ``scontrol requeue``.
        why: why that and not the other.
        account: of that job.
        qos: of that job.
    """

    partition: str | None
    why: str
    account: str | None = None
    qos: str | None = None

    @property
    def text(self) -> str:
        """A sentence for the user."""
        if self.partition is None:
            return f"scontrol requeue ({self.why})"
        return f"a job {self.where}, which may preempt it"

    @property
    def where(self) -> str:
        """Where that job is submitted."""
        return f"to partition {self.partition}" + (f" with QOS {self.qos}" if self.qos else "")

    def preempt(self, nodes: str) -> str:
        """Submit the job that takes ``nodes`` (as Slurm writes them) for a moment; its id.

        Raises:
            SlurmRejected, SlurmUnreachable: as Slurm says.
        """
        assert self.partition is not None
        wanted = [*self._where(self.partition), f"--nodelist={nodes}", "--exclusive"]
        quiet = ["--output=/dev/null", "--error=/dev/null", "--chdir=/"]
        return submit([*quiet, *wanted, f"--nodes={count_nodes(nodes)}", "--wrap=sleep 1"])

    def is_allowed(self) -> str:
        """Why Slurm would refuse such a job; empty if it would take it."""
        assert self.partition is not None
        return refusal_of(self._where(self.partition))

    def _where(self, partition: str) -> list[str]:
        options = [f"--partition={partition}", f"--job-name={JOB_NAME}", f"--time={_MINUTES}"]
        options += [f"--account={self.account}"] if self.account else []
        return options + ([f"--qos={self.qos}"] if self.qos else [])


def choose_preemptor(
    wanted: str, partition_name: str | None, *, account: str | None, qos: str | None
) -> Preemptor:
    """Preempt if the user may, else requeue.

    Args:
        wanted: "auto", "preemption" or "requeue".
        partition_name: of the run; None for the site's default.
        account: to charge.
        qos: to use.

    Raises:
        PreflightError: a preemption was asked for and is not possible.
    """
    if wanted == "requeue":
        return Preemptor(None, "as asked")
    try:
        why = ""
        site = read_slurm_site()
        for partition in _partitions(site, partition_name):
            preemptors = _preemptors(site, partition, account, qos)
            for preemptor in preemptors:
                refusal = preemptor.is_allowed()
                if not refusal:
                    return preemptor
                why = f"you may not submit {preemptor.where}: {refusal}"
            if not preemptors:
                why = f"nobody may preempt your jobs of {partition.name}"
    except MgptError as error:
        why = f"the site's settings cannot be read: {first_line(error.what)}"
    if wanted == "preemption":
        raise PreflightError(
            "a preemption was asked for and is not possible",
            faults=[why],
            fix="use --by requeue, or a partition whose jobs you may preempt",
        )
    return Preemptor(None, why)


def _preemptors(
    site: SlurmSite, partition: Partition, account: str | None, qos: str | None
) -> list[Preemptor]:
    why = "it has a higher priority"
    if site.preempt_type != "qos":
        return [
            Preemptor(candidate.name, why, account, qos) for candidate in site.preemptors(partition)
        ]
    preemption_risk = site.preemption_risk(partition, qos or DEFAULT_QOS)
    higher = (
        [taker.removeprefix("QOS ") for taker in preemption_risk.preemptors]
        if preemption_risk
        else []
    )
    return [Preemptor(partition.name, why, account, name) for name in higher]


def _partitions(site: SlurmSite, name: str | None) -> list[Partition]:
    if name is None:
        return [candidate for candidate in site.partitions.values() if candidate.is_default]
    return [
        site.partitions[candidate] for candidate in name.split(",") if candidate in site.partitions
    ]


def count_nodes(nodes: str) -> int:
    """How many nodes a list as ``node[1-3,7],gpu9`` names."""
    if not re.search(r"[\[,]", nodes):
        return 1
    return len(hostnames(nodes))

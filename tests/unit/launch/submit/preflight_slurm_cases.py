"""What several tests around ``preflight_slurm`` share."""

from __future__ import annotations

from typing import Any

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.launch.slurm import accounting
from mgpt4_hpc.launch.slurm.accounting import Association
from mgpt4_hpc.launch.slurm.cluster import parse_slurm_site
from mgpt4_hpc.launch.submit.preflight_slurm import (
    Cluster,
    admission_findings,
)

CONFIG = """\
Configuration data as of 2026-03-01T10:00:00
AccountingStorageEnforce = associations,limits,qos
AccountingStorageType   = accounting_storage/slurmdbd
ClusterName             = test
MaxArraySize            = 11
"""

PARTITIONS = """\
PartitionName=a100 Default=YES MaxTime=1-00:00:00 State=UP TotalNodes=2 AllowAccounts=ALL
PartitionName=lab MaxTime=UNLIMITED State=UP TotalNodes=1 AllowAccounts=other AllowQos=long
PartitionName=old MaxTime=UNLIMITED State=DOWN TotalNodes=1
PartitionName=cpu MaxTime=UNLIMITED State=UP TotalNodes=1 DenyAccounts=mine
"""

NODES = """\
NodeName=n1 CPUTot=64 AvailableFeatures=80g,ib Gres=gpu:a100:4(S:0-1) State=IDLE Partitions=a100,old
NodeName=n2 CPUTot=64 AvailableFeatures=80g Gres=gpu:a100:4(S:0-1) State=DOWN Partitions=a100
NodeName=n3 CPUTot=64 AvailableFeatures=(null) Gres=gpu:h100:8 State=IDLE Partitions=lab
NodeName=n4 CPUTot=64 Gres=(null) State=IDLE Partitions=cpu
"""


def answering(monkeypatch: pytest.MonkeyPatch, **answers: str | Exception) -> list[list[str]]:
    asked: list[list[str]] = []
    given = {"config": CONFIG, "partition": PARTITIONS, "node": NODES, **answers}

    def run(command: list[str], **_: Any) -> str:
        asked.append(command)
        answer = next((given[word] for word in command if word in given), "")
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr("mgpt4_hpc.launch.slurm.cluster.run_slurm", run)
    monkeypatch.setattr(accounting, "run_slurm", run)
    return asked


def cluster(config: str = CONFIG, **changes: Any) -> Cluster:
    known: dict[str, Any] = {
        "associations": (Association("mine", qos=frozenset({"normal", "short"})),),
        "qos_limits_s": {"normal": None, "short": 3600.0},
    }
    return Cluster(parse_slurm_site(config, PARTITIONS, NODES), **{**known, **changes})


def faults_of(seen: Cluster | None = None, tasks: int = 0, **launch: Any) -> list[str]:
    return findings_of(seen, tasks, **launch)[0]


def findings_of(
    seen: Cluster | None = None, tasks: int = 0, **launch: Any
) -> tuple[list[str], list[str]]:
    settings = {f"launch.{key}": value for key, value in launch.items()}
    config = load_config("stage1-vicuna7b", overrides=settings).config
    return admission_findings(config, seen or cluster(), tasks)

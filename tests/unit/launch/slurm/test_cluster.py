"""Tests of ``launch/slurm/cluster.py``."""

from __future__ import annotations

from typing import Any

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.launch.slurm import commands
from mgpt4_hpc.launch.slurm.accounting import Association
from mgpt4_hpc.launch.slurm.cluster import parse_node, parse_slurm_site
from mgpt4_hpc.launch.submit.preflight_slurm import (
    Cluster,
    admission_findings,
)
from tests.unit.launch.submit.preflight_slurm_cases import CONFIG, NODES, PARTITIONS


@pytest.mark.parametrize(
    ("gres", "gpus"),
    [
        ("gpu:3090:8(S:0-1)", {"3090": 8}),
        ("gpu:2080ti:4", {"2080ti": 4}),
        ("gpu:1g.10gb:7(S:0),gpu:a100:2", {"1g.10gb": 7, "a100": 2}),
        ("gpu:nvidia_a100_3g.20gb:2,nvme:1", {"nvidia_a100_3g.20gb": 2}),
        ("gpu:8(S:0-1),mps:800", {"": 8}),
    ],
)
def test_a_gpu_type_may_begin_with_a_digit(gres: str, gpus: dict[str, int]) -> None:
    assert parse_node(f"NodeName=n Gres={gres} State=IDLE").gpus == gpus


@pytest.fixture(autouse=True)
def _node_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """As ``scontrol show hostnames`` has them."""
    names = {"n[2,7]": "n2\nn7\n", "n[1-2]": "n1\nn2\n"}
    monkeypatch.setattr(commands, "run_slurm", lambda asked: names.get(asked[-1], asked[-1]))


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


def test_gpus_without_a_type() -> None:
    seen = Cluster(parse_slurm_site(CONFIG, PARTITIONS, NODES.replace("gpu:a100", "gpu")))
    assert faults_of(seen) == []
    assert "the site names no types" in faults_of(seen, gpu_type="a100")[0]

"""Tests of ``launch/slurm/cluster.py``."""

from __future__ import annotations

import pytest

from mgpt4_hpc.launch.slurm import commands
from mgpt4_hpc.launch.slurm.cluster import parse_node, parse_slurm_site
from mgpt4_hpc.launch.submit.preflight_slurm import (
    Cluster,
)
from tests.unit.launch.submit.preflight_slurm_cases import (
    CONFIG,
    NODES,
    PARTITIONS,
    faults_of,
)


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


def test_gpus_without_a_type() -> None:
    seen = Cluster(parse_slurm_site(CONFIG, PARTITIONS, NODES.replace("gpu:a100", "gpu")))
    assert faults_of(seen) == []
    assert "the site names no types" in faults_of(seen, gpu_type="a100")[0]

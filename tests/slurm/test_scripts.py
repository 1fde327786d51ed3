"""Every batch script that is kept as a golden text is one that a real sbatch takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.slurm.harness import Cluster
from tests.support.scripts import CASES, script_of

pytestmark = pytest.mark.slurm

HERE: dict[str, dict[str, Any]] = {
    "gpu-type": {"launch__constraint": "[a100|a100_80g]"},
    "account-and-qos": {
        "launch__account": "devaccount",
        "launch__qos": "normal",
        "launch__exclude": "node[1-3]",
        "launch__gpus": 1,
    },
    "odd-names": {"launch__account": None},
    "sbatch-options": {"launch__sbatch.reservation": None},
}
"""What the test cluster calls otherwise than the site of the golden texts."""


def test_sbatch_takes_every_script(cluster: Cluster, tmp_path: Path) -> None:
    before = cluster.sbatch("sleep 60", "--hold")
    refused = {}
    for case in CASES:
        changes = dict(HERE.get(case, {}))
        if "dependency" in CASES[case]:
            changes["dependency"] = f"afterok:{before}"
        script = tmp_path / f"{case}.sbatch"
        script.write_text(script_of(case, str(tmp_path), **changes))
        asked = cluster.run(["sbatch", "--test-only", str(script)], check=False)
        if asked.returncode != 0 or "to start at" not in asked.stderr:
            refused[case] = asked.stderr
    assert refused == {}


def test_a_script_that_asks_for_too_much_would_be_refused(cluster: Cluster, tmp_path: Path) -> None:
    script = tmp_path / "job.sbatch"
    script.write_text(script_of("four-gpus", str(tmp_path), launch__gpus=5))
    assert cluster.run(["sbatch", "--test-only", str(script)], check=False).returncode != 0

"""Downloads and encodings in parts on a real Slurm come to what one process makes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.data.sources.download import IMG2DATASET
from tests.slurm.harness import Cluster
from tests.support.image_server import image_server
from tests.support.img2dataset import img2dataset_environment
from tests.support.runs import patience
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm

SLURM = ("--slurm", "--partition", "a100", "--time", "5", "--parts", "2", "--json")


def mgpt4(cluster: Cluster, *arguments: object) -> dict:
    done = subprocess.run(
        [sys.executable, "-m", "mgpt4_hpc.cli.main", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=180 * patience(),
        env={**cluster.env, IMG2DATASET.variable: str(img2dataset_environment())},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_download_in_parts(cluster: Cluster, tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    source, out = tmp_path / "list.parquet", tmp_path / "shards"
    with image_server() as server:
        urls = [server.url("gone" if n % 10 == 3 else "good", n) for n in range(40)]
        parquet.write_table(pyarrow.table({"url": urls, "caption": urls}), source)
        few = ("--samples-per-shard", "10", "--processes", "1", "--threads", "8")
        report = mgpt4(cluster, "data", "download", source, "--out", out, *few, *SLURM)
        assert set(server.asked.values()) == {1}, "no part does another's work"
    assert (report["num_got"], report["missing"]) == (36, [])
    assert report["reasons"] == {"HTTP Error 404: Not Found": 4}
    assert len(list(out.glob("*.tar"))) == 4
    assert len(list((out / ".download" / "array").glob("*.done"))) == 2


@pytest.mark.soak  # each part imports torch: a minute on two cores
def test_an_encoding_in_parts(cluster: Cluster, tiny_world: TinyWorld, tmp_path: Path) -> None:
    config = tiny_world.write_config(tmp_path / "run.yaml", data__num_workers=0)
    encode = ("data", "encode", config, "--samples-per-shard", 5, "--dtype", "fp32")
    told = mgpt4(cluster, *encode, "--out", tmp_path / "parts", *SLURM)
    assert told["num_missing"] == 0
    mgpt4(cluster, *encode, "--out", tmp_path / "whole", "--json")
    ours, whole = (
        {path.name: path.read_bytes() for path in (tmp_path / name).glob("*.safetensors")}
        for name in ("parts", "whole")
    )
    assert ours == whole != {}

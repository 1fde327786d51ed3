"""`mgpt4 weights fetch` is killed, and killed again, and ends with a bundle."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mgpt4_hpc.model.estimates.bundle_check import check_bundle
from mgpt4_hpc.resources import toy_world_dir
from tests.support.weights_server import weights_server

TOY = toy_world_dir() / "weights"


@pytest.mark.timeout(1800)
def test_five_kills_at_random(tmp_path: Path) -> None:
    """SIGKILL, wherever it is; what was downloaded is not asked for from its beginning again."""
    out = tmp_path / "bundle"
    served = tmp_path / "served"
    shutil.copytree(TOY, served)
    with weights_server(served) as server:
        names = {"vit": "eva_vit_g.pth", "qformer": "blip2_pretrained_flant5xxl.pth"}
        sources: dict[str, dict[str, str]] = {
            part: {"url": f"{server.url}/files/{name}", "file": name}
            for part, name in names.items()
        }
        sources["llm"] = {"hub": "some/llm"}
        site = {"variants": {"toy": {part: part for part in sources}}, "sources": sources}
        (tmp_path / "sources.yaml").write_text(yaml.safe_dump(site))
        environ = os.environ | {
            "MGPT4_WEIGHT_SOURCES": str(tmp_path / "sources.yaml"),
            "HF_ENDPOINT": server.url,
            "HF_HOME": str(tmp_path / "hf"),
        }
        command = [sys.executable, "-m", "mgpt4_hpc.cli.main", "weights", "fetch", "toy", "--out",
                   str(out), "--architecture", str(TOY / "architecture.json")]  # fmt: skip
        server.bytes_per_s = 400_000
        chance = random.Random(3)
        limit = chance.randrange(300_000)
        for _ in range(5):
            child = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE)
            until = time.monotonic() + 300
            while server.sent < limit and child.poll() is None and time.monotonic() < until:
                time.sleep(0.005)
            assert child.poll() is None, child.communicate()[1]
            child.kill()
            child.communicate()
            limit = server.sent + chance.randrange(50_000, 600_000)
        server.bytes_per_s = 0
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        assert server.sent < 2 * sum(p.stat().st_size for p in served.rglob("*") if p.is_file())
    found = check_bundle(out)
    assert found.ok, found.faults
    assert (out / "llm" / "model.safetensors").is_file()
    assert not list(tmp_path.glob(".bundle.*"))

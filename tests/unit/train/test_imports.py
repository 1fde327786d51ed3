"""What a rank imports before it knows which model it trains."""

import json
import subprocess
import sys

import pytest

HEAVY = (
    "torch._dynamo",
    "torch._inductor",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "sympy",
    "torchvision",
    "timm",
    "transformers",
    "accelerate",
    "submitit",
)

SCRIPT = """
import json, os, sys

calls, lstat = [], os.lstat
os.lstat = lambda *path, **where: calls.append(path) or lstat(*path, **where)
import mgpt4_hpc.train, torch
before = set(sys.modules)
import mgpt4_hpc.launch.job.rank, mgpt4_hpc.train.run
print(json.dumps([sorted(set(sys.modules) - before), sorted(sys.modules), len(calls)]))
"""


@pytest.mark.slow
def test_a_rank_imports_little_beside_torch():
    """A decorator, or an import above a function, is enough to double a start's CPU time."""
    printed = subprocess.check_output([sys.executable, "-c", SCRIPT], text=True)
    added, loaded, num_lstat = json.loads(printed)
    assert not set(HEAVY) & set(loaded)
    assert len(added) < 700, f"{len(added)} modules, 520 when this was written"
    assert num_lstat < 1000, f"{num_lstat} calls of lstat, 13,000 if inspect searches for modules"

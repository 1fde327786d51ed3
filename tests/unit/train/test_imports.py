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


@pytest.mark.slow
def test_a_rank_imports_little_beside_torch():
    """A decorator, or an import above a function, is enough to double a start's CPU time."""
    script = (
        "import sys, json, torch\n"
        "before = set(sys.modules)\n"
        "import mgpt4_hpc.launch.job.rank, mgpt4_hpc.train.run\n"
        "print(json.dumps([sorted(set(sys.modules) - before), sorted(sys.modules)]))"
    )
    printed = subprocess.check_output([sys.executable, "-c", script], text=True)
    added, loaded = json.loads(printed)
    assert not set(HEAVY) & set(loaded)
    assert len(added) < 700, f"{len(added)} modules, 520 when this was written"

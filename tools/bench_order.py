"""What the sample order costs at 129 million samples.

    python tools/bench_order.py --samples 129000000 --json

`build_s`: to make the order of LAION : CC_SBU at 115 : 14; `reposition_s`: from there to a global
batch at a random position, as after a resume; `peak_rss_mib`: of the whole process;
`state_bytes`: of what a checkpoint stores.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from mgpt4_hpc.data.sampling.order import SampleOrder, SourceSize

WEIGHTS = {"laion": 115, "cc_sbu": 14}


def measure(num_samples: int, seed: int, batch: int) -> dict[str, float | int]:
    sources = [
        SourceSize(name, max(1, num_samples * weight // sum(WEIGHTS.values())), weight)
        for name, weight in WEIGHTS.items()
    ]
    began = time.perf_counter()
    order = SampleOrder(sources, seed, val_fraction=0.001)
    build_s = time.perf_counter() - began
    position = random.Random(seed).randrange(3 * num_samples)
    began = time.perf_counter()
    order.lookup(np.arange(position, position + batch))
    reposition_s = time.perf_counter() - began
    began = time.perf_counter()
    for step in range(1, 201):
        order.lookup(np.arange(position + step * batch, position + (step + 1) * batch))
    return {
        "samples": num_samples,
        "build_s": round(build_s, 5),
        "reposition_s": round(reposition_s, 5),
        "lookup_s_per_step": round((time.perf_counter() - began) / 200, 6),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1),
        "state_bytes": len(json.dumps({"samples_seen": position})),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=129_000_000)
    parser.add_argument("--batch", type=int, default=256, help="global batch size")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    result = measure(options.samples, options.seed, options.batch)
    if options.json:
        print(json.dumps(result))
    else:
        for name, value in result.items():
            print(f"{name:18} {value}")


if __name__ == "__main__":
    main()

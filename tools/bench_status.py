"""What the command line costs a login node: `status` over many runs, `--help`, `submit --dry-run`.

    python tools/bench_status.py --json

Processor and wall seconds of whole processes, start of Python included; the best of some repeats,
because what else runs on the machine only ever adds. The runs are synthetic: two attempts each, a
quarter waiting, a quarter running, the rest over; squeue and sacct are scripts that print at once,
and that count how often they were asked.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.cli.fakes import squeue_row
from tests.cli.synthetic import Clock, attempt, make_run, submitted

ROOT = Path(__file__).resolve().parent.parent
STATES = ("PENDING", "RUNNING", "CANCELLED", "FAILED")


def make_world(root: Path, num_runs: int) -> dict[str, str]:
    """Runs under ``root/runs``, and the environment in which Slurm knows them."""
    rows = []
    for number in range(num_runs):
        run = make_run(root / "runs", f"run{number:04d}")
        submitted(run, str(number + 1))
        clock = Clock(time.time() - 600)
        attempt(run, 1, first=1, last=200, cause="preempted", clock=clock, job_id=str(number + 1))
        attempt(run, 2, first=201, last=400, restart_count=1, clock=clock, job_id=str(number + 1))
        rows.append(squeue_row(str(number + 1), STATES[number % len(STATES)], restarts=1))
    tools = root / "bin"
    tools.mkdir()
    (root / "squeue.txt").write_text("".join(rows))
    for name, answer in (("squeue", root / "squeue.txt"), ("sacct", os.devnull)):
        script = f"#!/bin/sh\necho {name} >> '{root}/calls'\nexec cat '{answer}'\n"
        (tools / name).write_text(script)
        (tools / name).chmod(0o755)
    (root / "calls").touch()
    return {
        **os.environ,
        "PATH": f"{tools}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "MGPT4_RUNS_DIR": str(root / "runs"),
    }


def measure(words: list[str], environ: dict[str, str], repeats: int) -> dict[str, float]:
    """Processor and wall seconds of ``mgpt4 WORDS``; the best of ``repeats``."""
    walls, processor = [], []
    for _ in range(repeats):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "mgpt4_hpc.cli.main", *words],
            env=environ,
            stdout=subprocess.DEVNULL,
            check=True,
        )
        walls.append(time.perf_counter() - began)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        processor.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return {"cpu_s": round(min(processor), 3), "wall_s": round(min(walls), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    dry_run = ["submit", "--config", "toy-stage1", "--name", "new", "--executor", "local"]
    commands = {
        "status": ["status"],
        "help": ["--help"],
        "submit_dry_run": [*dry_run, "--dry-run"],
    }
    with tempfile.TemporaryDirectory(prefix="mgpt4-bench-") as folder:
        environ = make_world(Path(folder), options.runs)
        found: dict[str, object] = {"runs": options.runs}
        for name, words in commands.items():
            found[name] = measure(words, environ, options.repeats)
        calls = (Path(folder) / "calls").read_text().split()
        asked = {tool: calls.count(tool) / options.repeats for tool in ("squeue", "sacct")}
        found["calls_per_status"] = asked
    if options.json:
        print(json.dumps(found))
        return
    for name, value in found.items():
        print(f"{name:<18} {value}")


if __name__ == "__main__":
    main()

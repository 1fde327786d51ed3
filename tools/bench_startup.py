#!/usr/bin/env python3
"""How long a start takes, from the process to its first finished step.

    python tools/bench_startup.py --shape vicuna7b --dir /scratch/me --device cuda --json
    python tools/bench_startup.py --shape cpu40m --dir /tmp/startup

Writes a bundle with random weights of the real sizes into --dir (once; 15 GB for a 7B), and trains
a few steps on the toy world's shards with it, --starts times, each a new run in a new process. The
first one warms the file cache and is left out. Medians, in seconds:

* `start_s`: from the start of the process to its first finished step;
* `buckets_s`: where the run's ledger says that they went, by then;
* `import_s`: what of `start_s` passed before the training command began to count;
* `cpu_s`: CPU time, user and system, of four processes, one after the other: `import torch`; what
  a rank imports before it knows its model; the libraries' classes that the toy's model needs, with
  torch and the garbage collector on; and a toy run of one step from its start to its end, data
  workers included;
* `calls`: their system calls that name a path in the environment, where there is strace.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

from bench.hardware import machine_name  # noqa: E402
from bench.shapes import SHAPES, Shape  # noqa: E402

STEPS = 2

_NAMES = [name for name in SHAPES if not name.startswith("tiny")]  # fewer tokens than the toy has


def make_bundle(folder: Path, shape: Shape, device: str) -> None:
    """Random weights of ``shape``, in bf16, as ``mgpt4 weights import`` would leave them."""
    import torch

    from mgpt4_hpc.model.bundle.writer import save_parts
    from mgpt4_hpc.model.nn.random_weights import random_model
    from mgpt4_hpc.resources import toy_world_dir

    torch.manual_seed(0)
    model = random_model(shape.architecture, shape.llm, precision="bf16", device=device)
    llm = folder.with_name(f"{folder.name}-llm")
    shutil.rmtree(llm, ignore_errors=True)
    model.language_model.save_pretrained(llm)  # type: ignore[operator]
    toy = toy_world_dir() / "weights" / "llm"
    shutil.copyfile(toy / "tokenizer_config.json", llm / "tokenizer_config.json")
    widen_tokenizer(toy / "tokenizer.model", llm / "tokenizer.model", int(shape.llm["vocab_size"]))
    parts = {
        "vision.safetensors": model.vision.state_dict(),
        "connector.safetensors": model.connector.state_dict(),
    }
    save_parts(folder, parts, model.architecture, llm)


def _elsewhere(action: Callable[..., None], *arguments: Any) -> None:
    """Do it in a process of its own, which gives its GPU memory back to the runs that follow."""
    process = multiprocessing.get_context("spawn").Process(target=action, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise click.ClickException(f"{action.__name__} ended with code {process.exitcode}")


def widen_tokenizer(source: Path, target: Path, num_tokens: int) -> None:
    """The toy's tokenizer with as many tokens as the model embeds; the new ones occur nowhere."""
    from sentencepiece import sentencepiece_model_pb2

    tokens = sentencepiece_model_pb2.ModelProto()
    tokens.ParseFromString(source.read_bytes())
    for number in range(len(tokens.pieces), num_tokens):
        tokens.pieces.add(piece=f"<unused-{number}>", score=-1e6)
    target.write_bytes(tokens.SerializeToString())


def start(bundle: Path, run: Path, device: str) -> dict[str, Any]:
    """One run's first seconds."""
    from mgpt4_hpc.telemetry.event_kinds import Kind

    settings = {
        "model.weights": str(bundle),
        "model.precision": "bf16",
        "train.device": device,
        "train.max_steps": str(STEPS),
        "train.warmup_steps": "0",
        "train.global_batch_size": "4",
        "train.micro_batch_size": "4",
        "train.log_every_steps": "1",
    }
    command = [sys.executable, "-m", "mgpt4_hpc.train", "--cfg-path", "toy-stage1"]
    command += ["--run-dir", str(run)]
    for key, value in settings.items():
        command += ["--set", f"{key}={value}"]
    began = time.time()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(f"the run failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    lines = (run / "ledger" / "attempt-0001.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    first = next(record for record in records if record["kind"] == Kind.FIRST_STEP)
    logged = next(record for record in records if record["kind"] == Kind.STEPS)
    return {
        "start_s": first["t"] - began,
        "import_s": first["t"] - began - first["since_start_s"],
        "buckets_s": logged["buckets"],
    }


def processes(run: Path) -> dict[str, list[str]]:
    """What is compared with `import torch`: Python's arguments."""
    train = ["-m", "mgpt4_hpc.train", "--cfg-path", "toy-stage1", "--run-dir", str(run)]
    for setting in ("train.max_steps=1", "train.warmup_steps=0", "train.device=cpu"):
        train += ["--set", setting]
    models = "transformers.models.llama.modeling_llama, transformers.models.blip_2.modeling_blip_2"
    return {
        "import_torch": ["-c", "import torch"],
        "import_rank": ["-c", "import mgpt4_hpc.launch.job.rank, mgpt4_hpc.train.run"],
        "import_models": ["-c", f"import mgpt4_hpc.train, {models}, timm.models.eva"],
        "one_toy_step": train,
    }


def cpu_seconds(name: str, command: list[str]) -> float:
    """CPU time of a process, user and system."""
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise click.ClickException(f"{name} ended with code {process.returncode}")
    return usage.ru_utime + usage.ru_stime


def count_calls(name: str, command: list[str], trace: Path) -> int:
    """System calls of a process and its children that name a path in this environment."""
    cpu_seconds(name, ["strace", "-f", "-qq", "-e", "trace=%file", "-o", str(trace), *command])
    with trace.open(encoding="utf-8", errors="replace") as lines:
        return sum(f'"{sys.prefix}' in line for line in lines)


def compare(folder: Path, repeats: int) -> dict[str, dict[str, float]]:
    """The report's `cpu_s` and `calls`."""
    run = folder / "one-step"
    cpu: dict[str, list[float]] = {}
    calls = {}
    for number in range(repeats):
        for name, arguments in processes(run).items():
            command = [sys.executable, *arguments]
            cpu.setdefault(name, []).append(cpu_seconds(name, command))
            shutil.rmtree(run, ignore_errors=True)
            if number == 0 and shutil.which("strace"):
                calls[name] = count_calls(name, command, folder / "trace")
                shutil.rmtree(run, ignore_errors=True)
    medians = {name: round(statistics.median(times), 2) for name, times in cpu.items()}
    return {"cpu_s": medians, "calls": calls}


@click.command(
    help=(__doc__ or "").replace("\n\n    ", "\n\n\b\n    ", 1).replace("\n\n*", "\n\n\b\n*")
)
@click.option("--shape", type=click.Choice(_NAMES), default="vicuna7b", show_default=True)
@click.option("--dir", "folder", type=click.Path(path_type=Path), required=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--starts", type=click.IntRange(1), default=3, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def main(shape: str, folder: Path, device: str, starts: int, as_json: bool) -> None:
    """See the module."""
    folder.mkdir(parents=True, exist_ok=True)
    bundle = folder / shape
    if not bundle.exists():
        _elsewhere(make_bundle, bundle, SHAPES[shape], device)
    runs = folder / f"runs-{os.getpid()}"
    found = [start(bundle, runs / str(number), device) for number in range(starts + 1)][1:]
    costs = compare(runs, starts)
    shutil.rmtree(runs)
    size = sum(path.stat().st_size for path in bundle.rglob("*") if path.is_file())
    buckets = {name for one in found for name in one["buckets_s"]}
    report = {
        "shape": shape,
        "device": device,
        "bundle_gib": size / 2**30,
        "start_s": statistics.median(one["start_s"] for one in found),
        "import_s": statistics.median(one["import_s"] for one in found),
        **costs,
        "buckets_s": {
            name: statistics.median(one["buckets_s"].get(name, 0.0) for one in found)
            for name in sorted(buckets)
        },
        "machine": machine_name(device),
        "load_1min": round(os.getloadavg()[0], 2),
        "date": date.today().isoformat(),
    }
    if as_json:
        click.echo(json.dumps(report, indent=1))
        return
    for name, value in report.items():
        click.echo(f"{name:<14}{value}")


if __name__ == "__main__":
    main()

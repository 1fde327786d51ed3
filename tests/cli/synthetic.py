"""Run folders as training leaves them, made in milliseconds."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mgpt4_hpc.config.load import merge
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.launch.runs.sweep_dir import SweepDir, create_sweep
from mgpt4_hpc.run_dir import RunDir, write_json
from mgpt4_hpc.telemetry.event_kinds import Kind
from mgpt4_hpc.telemetry.heartbeat import Heartbeat
from mgpt4_hpc.telemetry.ledger import Ledger

SETTINGS: dict[str, Any] = {
    "stage": 1,
    "model.weights": "/nowhere/weights",
    "data.sources": [{"name": "laion", "path": "/nowhere/laion"}],
    "train.global_batch_size": 8,
    "train.micro_batch_size": 2,
    "train.max_steps": 100,
    "train.lr": 0.01,
}


@dataclass
class Clock:
    """Unix time that moves when told."""

    now: float = field(default_factory=lambda: time.time() - 3600)

    def __call__(self) -> float:
        return self.now


def make_run(root: Path, name: str = "one", **settings: Any) -> RunDir:
    """A run that was made and not yet submitted; ``train__lr=1`` changes a setting."""
    changed = {key.replace("__", "."): value for key, value in settings.items()}
    resolved = merge([("file made.yaml", {**SETTINGS, "name": name, **changed})])
    run = RunDir(root / name)
    run.create({"name": name, "stage": resolved.config.stage, "created": "2026-11-22T10:00:00"})
    write_config(run.config_file, resolved)
    run.code.mkdir()
    (run.slurm / "python").touch()
    return run


def submitted(
    run: RunDir, job_id: str = "17", executor: str = "slurm", age_s: float = 900
) -> RunDir:
    """Leave what submission leaves in a run; returns the run."""
    job = {"executor": executor, "job_id": job_id, "submitted": time.time() - age_s}
    write_json(run.slurm / "job.json", job)
    return run


def attempt(
    run: RunDir,
    number: int,
    *,
    first: int,
    last: int,
    cause: str | None = None,
    job_id: str = "17",
    restart_count: int = 0,
    clock: Clock | None = None,
    requeue: bool | None = None,
    executor: str = "slurm",
    device: str = "cuda",
    early: str = "",
) -> None:
    """Write one attempt's ledger: steps ``first`` to ``last``, one second each, a save at the end.

    Without ``cause`` it is still running, or was killed.
    """
    clock = clock or Clock()
    ledger = Ledger(run.ledger, number, clock=clock)
    (run.attempts / f"{number:04d}").write_text("{}")
    ledger.event(
        Kind.START,
        attempt=number,
        job_id=job_id,
        restart_count=restart_count,
        nodes=["node1", "node2"],
        world_size=4,
        device=device,
        executor=executor,
    )
    if first > 1:
        ledger.event(Kind.RESTORE, step=first - 1)
    clock.now += 10
    ledger.event(Kind.FIRST_STEP, step=first)
    for step in range(first, last + 1):
        clock.now += 1
        ledger.event(
            Kind.STEPS,
            step=step,
            loss=5 - step / 100,
            samples_per_s=8.0,
            buckets={"productive": float(step - first + 1), "start_up": 10.0},
        )
    ledger.event(Kind.SAVE, step=last, durable_s=0.1)
    checkpoint = run.checkpoints / f"step-{last:08d}"
    checkpoint.mkdir(exist_ok=True)
    (checkpoint / "manifest.json").write_text("{}")
    if cause is not None:
        code = 0 if cause == "finished" else 75
        ledger.event(Kind.END, cause=cause, step=last, exit_code=code, early=early)
    if requeue is not None:
        ledger.event(Kind.REQUEUE, accepted=requeue)
    ledger.close()
    Heartbeat(run.heartbeat, number).beat(last, force=True)


def place_with_runs(folder: Path) -> Path:
    """``folder`` with the runs that the examples of the pages name, each over."""
    swept = [f"my-sweep-seed{seed}" for seed in (1, 2)]
    for name in ("stage1-vicuna7b", "stage2-vicuna7b", "first-try", "second-try", *swept):
        run = make_run(folder / "runs", name)
        submitted(run)
        attempt(run, 1, first=1, last=50, cause="preempted")
        attempt(run, 2, first=41, last=100, restart_count=1, cause="finished")
        log = "".join(f"=== one: attempt {n}, rank 0 of 2, process 3 on n ===\n" for n in (1, 2))
        for rank in range(4):
            (run.slurm / f"17_{rank}_log.out").write_text(log)
    sweep = SweepDir.of("my-sweep", folder / "runs")
    create_sweep(sweep, [RunDir(folder / "runs" / name) for name in swept], [{}, {}], "slurm")
    (folder / "reports").mkdir()
    return folder


_ORIGINAL = {
    "model": {"arch": "minigpt4", "model_type": "pretrain_vicuna0"},
    "datasets": {
        "laion": {"batch_size": 64, "sample_ratio": 115},
        "cc_sbu": {"batch_size": 64, "sample_ratio": 14},
    },
    "run": {"init_lr": "1e-4", "min_lr": "8e-5", "warmup_lr": "1e-6", "weight_decay": 0.05,
            "max_epoch": 4, "iters_per_epoch": 5000, "warmup_steps": 5000, "seed": 42},
}  # fmt: skip


def write_original(folder: Path) -> Path:
    """A configuration of the original's, where its repository has it."""
    path = folder / "train_configs" / "minigpt4_stage1_pretrain.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(_ORIGINAL))
    return path


def write_pairs(path: Path) -> Path:
    """A list of addresses and captions, as BLIP's authors publish theirs."""
    pairs = [{"url": f"http://a.org/{n}", "caption": "a dog"} for n in range(20)]
    path.write_text(json.dumps(pairs))
    return path

"""The situations whose batch scripts are kept as texts, and rendered for a real Slurm."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.launch.runs.sweep_dir import SweepDir
from mgpt4_hpc.launch.submit.submit_run import render, render_local
from mgpt4_hpc.launch.submit.sweep import render_array, render_task
from mgpt4_hpc.run_dir import RunDir

CASES: dict[str, dict[str, Any]] = {
    "one-gpu": {"launch.gpus": 1},
    "four-gpus": {"launch.gpus": 4, "launch.mem_gib_per_gpu": 64},
    "two-nodes": {"launch.gpus": 4, "launch.nodes": 2, "launch.partition": "a100-preempt"},
    "gpu-type": {"launch.gpus": 4, "launch.gpu_type": "a100", "launch.constraint": "[r1|r2]&nvme"},
    "dependency": {"dependency": "afterok:17"},
    "dependencies": {"dependency": "afterok:17", "launch.sbatch.dependency": "singleton"},
    "array": {"launch.gpus": 1, "array": 10, "max_parallel": 4},
    "array-task": {"launch.gpus": 1, "task": True},
    "container-pyxis": {
        "launch.gpus": 4,
        "container.runtime": "pyxis",
        "container.image": "nvcr.io#nvidia/pytorch:25.01-py3",
        "container.mounts": ("/data", "/models:/models:ro"),
        "container.options": ("--no-container-mount-home",),
    },
    "container-apptainer": {
        "launch.gpus": 4,
        "container.runtime": "apptainer",
        "container.image": "/images/my image.sif",
        "container.mounts": ("/data", "/models:/models:ro"),
    },
    "account-and-qos": {
        "launch.account": "lab-17",
        "launch.qos": "preempt",
        "launch.exclude": "node[1-3],node7",
        "launch.time_min": 90,
        "launch.signal_before_s": 300,
    },
    "exclusive": {
        "launch.gpus": 4,
        "launch.exclusive": True,
        "launch.gpu_request": "gpus-per-node",
        "launch.gpu_type": "a100",
        "launch.mail_type": "FAIL,TIME_LIMIT",
        "launch.mail_user": "me@example.org",
    },
    "local-only": {"launch.gpus": 2, "train.device": "cpu", "local": True},
    "odd-names": {
        "name": "0.a_b-C..",
        "launch.account": 'my lab\'s $HOME `id` "x" #1',
        "launch.modules": ("cuda/12.4; touch /tmp/x",),
        "launch.env": {"NCCL_SOCKET_IFNAME": "$(touch /tmp/x)"},
        "run": "it's a 'run' $(id)",
    },
    "setup-lines": {
        "launch.modules": ("gcc/13", "cuda/12.4"),
        "launch.env": {"NCCL_SOCKET_IFNAME": "ib0", "NCCL_DEBUG": "WARN"},
        "launch.setup": ("source '/opt/my env/bin/activate'", "set -eu"),
    },
    "sbatch-options": {
        "launch.sbatch.reservation": "maintenance",
        "launch.sbatch.comment": "kill -9; $(id) \"quoted\" 'too'",
        "launch.sbatch.mail-user": "a@b.c",
    },
}


def script_of(case: str, runs: str = "/scratch/runs", **changes: Any) -> str:
    """A case's script, with the interpreter called PYTHON.

    Args:
        case: its name.
        runs: folder of the runs.
        changes: settings of another site, with ``__`` for the dot; None leaves one out.
    """
    settings: dict[str, Any] = {**CASES[case], **_dotted(changes)}
    settings = {key: value for key, value in settings.items() if value is not None}
    dependency = settings.pop("dependency", None)
    count, parallel = settings.pop("array", 0), settings.pop("max_parallel", None)
    is_task, is_local = settings.pop("task", False), settings.pop("local", False)
    run = RunDir(Path(runs) / settings.pop("run", "my-run"))
    resolved = load_config("stage1-vicuna7b", overrides={"name": "my-run", **settings})
    if count:
        sweep = SweepDir.of("my-sweep", Path(runs))
        script = render_array(sweep, resolved.config, count, max_parallel=parallel)
    elif is_task:
        script = render_task(run, resolved.config)
    elif is_local:
        script = render_local(run, resolved)
    else:
        script = render(run, resolved, dependency)
    return script.replace(shlex.quote(sys.executable), "PYTHON")


def _dotted(changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key.replace("__", "."): value for key, value in changes.items()}

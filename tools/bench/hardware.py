"""What the figures were measured on."""

from __future__ import annotations

import platform
from pathlib import Path

import torch


def machine_name(device_type: str) -> str:
    """The GPU's name, or the CPU's with the number of threads used."""
    if device_type == "cuda":
        return torch.cuda.get_device_name()
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    for line in lines:
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"{model}, {torch.get_num_threads()} threads"

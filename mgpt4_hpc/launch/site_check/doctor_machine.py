"""Python, its packages and the GPUs of this machine, without importing torch into this process."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import cache_from_source, find_spec
from pathlib import Path

from mgpt4_hpc.formatting import first_line
from mgpt4_hpc.launch.runs.shared_storage import not_shared
from mgpt4_hpc.launch.site_check.finding import Finding, Findings
from mgpt4_hpc.text_files import parse_json

OLDEST_PYTHON = (3, 11)
FEW_FILES = 1024
_SMI_TIMEOUT_S = 30.0
_TORCH_TIMEOUT_S = 180.0
_BUILD = re.compile(r"^cuda\b[^=]*=\s*(?:'([^']*)'|None)", re.MULTILINE)

# In a process of its own: the import takes seconds, and a broken driver may end the process.
_ASK_TORCH = """
import json, torch
told = {"version": torch.__version__, "cuda": torch.version.cuda, "gpus": []}
told["available"] = torch.cuda.is_available()
if told["available"]:
    told["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    told["nccl_available"] = torch.distributed.is_nccl_available()
    for number in range(torch.cuda.device_count()):
        one = torch.ones(64, device=f"cuda:{number}")
        told["gpus"].append({
            "name": torch.cuda.get_device_name(number),
            "capability": list(torch.cuda.get_device_capability(number)),
            "bf16": torch.cuda.get_device_capability(number) >= (8, 0),
            "computes": float(one.sum()) == 64.0,
        })
print(json.dumps(told))
"""


def python_findings(*, shared: bool) -> list[Finding]:
    """Whether this Python can run the package.

    Args:
        shared: whether other machines must see the environment, as under Slurm.
    """
    findings = Findings("Python")
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        wanted = ".".join(map(str, OLDEST_PYTHON))
        findings.fault(f"Python {version}", f"use Python {wanted} or later")
    else:
        findings.ok(f"Python {version} in {sys.prefix}")
    if shared and (reason := not_shared(Path(sys.prefix))):
        findings.warn(
            f"{sys.prefix} {reason}: jobs start this very Python, under the same path",
            "use an environment on shared storage, or let `mgpt4 drill` show that it works",
        )
    _package_findings(findings)
    _bytecode_findings(findings)
    _limit_findings(findings)
    return findings


def _bytecode_findings(findings: Findings) -> None:
    """Uv leaves it to the first import to compile a package, which may not be allowed to."""
    spec = find_spec("torch")
    if spec is None or not spec.origin or Path(cache_from_source(spec.origin)).exists():
        return
    packages = Path(spec.origin).parents[1]
    if not os.access(packages / "torch", os.W_OK):
        findings.warn(
            f"{packages} has no byte code, and you may not write it: each start of a rank compiles "
            "all modules, which more than doubles its CPU time",
            f"ask the owner for: {sys.executable} -m compileall -q -j 0 {packages}",
        )


def _package_findings(findings: Findings) -> None:
    from packaging.requirements import Requirement

    try:
        wanted = importlib.metadata.requires("mgpt4-hpc") or []
    except importlib.metadata.PackageNotFoundError:
        findings.note("mgpt4-hpc itself is not installed, only found", "pip install .")
        return
    versions = []
    for requirement in map(Requirement, wanted):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            findings.fault(f"{requirement.name} is not installed", f"pip install '{requirement}'")
            continue
        versions.append(f"{requirement.name} {version}")
        if not requirement.specifier.contains(version, prereleases=True):
            findings.fault(
                f"{requirement.name} is {version}, wanted is {requirement.specifier}",
                f"pip install '{requirement}'",
            )
    findings.ok(", ".join(versions))


def _limit_findings(findings: Findings) -> None:
    """Slurm gives a job the limits of the shell that submitted it, unless the site says no."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files != resource.RLIM_INFINITY and files < FEW_FILES:
        findings.warn(
            f"a process may open {files} files, shards among them", f"ulimit -n {FEW_FILES}"
        )
    locked, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if locked != resource.RLIM_INFINITY:
        findings.note(
            f"a process may lock {locked // 1024:,} KiB of memory; InfiniBand wants it unlimited, "
            "and NCCL falls back to slow sockets without",
            "look for 'NET/IB' in a job's log with NCCL_DEBUG=INFO; else ask the support",
        )


def gpu_findings(environ: Mapping[str, str] = os.environ, *, gpu_nodes: bool) -> list[Finding]:
    """The GPUs of this machine and torch's view of them.

    Args:
        environ: for NCCL's variables, which jobs inherit.
        gpu_nodes: whether jobs will run on GPUs, here or elsewhere.
    """
    findings = Findings("GPU")
    build = torch_build()
    if build is None:
        findings.fault("torch is not installed", "pip install .")
        return findings
    version, cuda = build
    if cuda:
        nccl = _nccl_package()
        findings.ok(f"torch {version} is built for CUDA {cuda}{f', with {nccl}' if nccl else ''}")
    elif gpu_nodes:
        findings.fault(
            f"torch {version} is a build for CPUs: jobs on GPU nodes would not use their GPUs",
            "install torch for your driver's CUDA: https://pytorch.org/get-started/locally",
        )
    else:
        findings.note(f"torch {version} is a build for CPUs")
    set_here = sorted(name for name in environ if name.startswith("NCCL_"))
    if set_here:
        limits = ", ".join(f"{name}={environ[name]}" for name in set_here)
        findings.note(f"your shell sets {limits}, and jobs inherit it")
    seen = _ask_smi()
    if seen is None:
        findings.note(
            "no GPU on this machine, as usual on a login node; to look at a GPU node: "
            "srun --gpus=1 mgpt4 doctor"
        )
        return findings
    for line in seen:
        findings.ok(f"nvidia-smi: {line}")
    if cuda:
        _torch_findings(findings)
    return findings


def torch_build() -> tuple[str, str | None] | None:
    """Torch's version and the CUDA that it is built for, read from its files; None without it."""
    spec = find_spec("torch")
    if spec is None or not spec.origin:
        return None
    try:
        text = (Path(spec.origin).parent / "version.py").read_text(encoding="utf-8")
        match = _BUILD.search(text)
        return importlib.metadata.version("torch"), match[1] if match else None
    except (OSError, importlib.metadata.PackageNotFoundError):
        return None


def _nccl_package() -> str:
    for distribution in importlib.metadata.distributions():
        name = distribution.metadata["Name"] or ""
        if name.startswith("nvidia-nccl"):
            return f"NCCL {distribution.version}"
    return ""


def _ask_smi() -> list[str] | None:
    if shutil.which("nvidia-smi") is None:
        return None
    query = "--query-gpu=name,memory.total,driver_version"
    try:
        done = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SMI_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return lines if done.returncode == 0 and lines else None


def _torch_findings(findings: Findings) -> None:
    try:
        done = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TORCH_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        findings.fault(
            f"torch did not answer within {_TORCH_TIMEOUT_S:.0f} s about the GPUs",
            "look at `nvidia-smi` and `dmesg`; a hanging driver needs the support",
        )
        return
    try:
        torch_facts = parse_json(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        lines = done.stderr.strip().splitlines()
        findings.fault(
            f"torch cannot use the GPUs: {first_line(lines[-1]) if lines else 'no reason given'}",
            "install torch for your driver's CUDA: https://pytorch.org/get-started/locally",
        )
        return
    if not torch_facts["available"]:
        findings.fault(
            f"torch, built for CUDA {torch_facts['cuda']}, sees no GPU though nvidia-smi does",
            "the driver may be too old for it, or CUDA_VISIBLE_DEVICES is empty",
        )
        return
    for number, gpu in enumerate(torch_facts["gpus"]):
        name = f"GPU {number}, {gpu['name']}"
        capability = ".".join(map(str, gpu["capability"]))
        if not gpu["computes"]:
            findings.fault(f"{name} computes wrong sums", "use another node and tell the support")
        elif gpu["bf16"]:
            findings.ok(f"{name}: compute capability {capability}, has bf16")
        else:
            findings.note(f"{name}: compute capability {capability}, no bf16: fp16 is used instead")
    if torch_facts["nccl_available"]:
        findings.ok(f"NCCL {torch_facts['nccl']} is there for several GPUs")
    else:
        findings.fault(
            "this torch has no NCCL: several GPUs cannot work together", "use pip's torch"
        )

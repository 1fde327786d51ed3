"""Is this node fit for the run? Each task looks before it loads any weights.

A node with a dead GPU, a full scratch or a clock an hour ahead fails a job minutes or hours later,
with a message that names none of them, and the scheduler likes to give the job the same node
again: it is the one that is free.
"""

from __future__ import annotations

import errno
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.data.batching.worker_stream import (
    MORE_SHARED_MEMORY,
    PREFETCH,
    SHARED_MEMORY,
)
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import BadNode, ConfigError, MgptError, StorageTrouble
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.retry import retry_storage
from mgpt4_hpc.train.device import choose_device

MIB = 2**20
SCRATCH_BYTES = 256 * MIB
"""Space that temporary files of libraries, compilers and packed data need at least."""
HOST_MEMORY_BYTES = 512 * MIB
"""Memory that a rank needs for itself, however small the model; below, the kernel kills it."""
GPU_FREE_FRACTION = 0.8
"""Share of a GPU that is free before we begin, if it is ours alone."""
GPU_PATIENCE_S = 30.0
"""The job that had the GPU before us may still be letting go of its memory."""
CLOCK_TOLERANCE_S = 60.0
"""Beyond this, Slurm's credentials and the ledger's times are soon worth nothing."""

_PUBLISHED_SIZE = 224
"""Side of the published models' images, in pixels."""
_PROBE_BYTES = MIB
_NO_FAULT_OF_THE_NODE = frozenset({errno.ENOSPC, errno.EDQUOT})
"""A full shared disk is full on every node; training goes on without saving."""


@dataclass(frozen=True)
class NodeFindings:
    """What one rank found on its node.

    Attributes:
        node: its name.
        faults: of the node; empty if it is fit.
        storage: why the run's folder cannot be written from here, empty if it can. Whether that is
            the node's fault shows only when the other nodes are heard.
        time: unix time of the rank's clock.
    """

    node: str
    faults: tuple[str, ...] = ()
    storage: str = ""
    time: float = 0.0


def check_node(
    config: RunConfig, ranks: Ranks, run: Path, node: str = "", *, gpu_allotted: bool = False
) -> NodeFindings:
    """Look at everything a rank needs here; takes milliseconds on a CPU, seconds with a GPU.

    Args:
        config: of the run.
        ranks: this process among the others.
        run: the run's folder.
        node: name to report; this host's if empty.
        gpu_allotted: the scheduler gave us a GPU, so that its absence is a fault.

    Raises:
        ConfigError: what is wrong is wrong on every node.
    """
    faults = [
        *gpu_faults(config, ranks, gpu_allotted=gpu_allotted),
        *memory_faults(),
        *scratch_faults(),
        *shared_memory_faults(config, ranks),
    ]
    storage, clock = run_folder_faults(run, ranks.rank)
    return NodeFindings(node or socket.gethostname(), (*faults, *clock), storage, time.time())


def gpu_faults(config: RunConfig, ranks: Ranks, *, gpu_allotted: bool = False) -> list[str]:
    """Whether this rank's GPU is there, computes, and is free; a CPU run needs none.

    ``train.device: auto`` takes the CPU where CUDA finds no GPU. On a node that was to have one,
    that would be a night of training at a hundredth of the speed.

    Raises:
        ConfigError: a GPU is asked for, and torch was built without CUDA.
    """
    if config.train.device == "cuda" and not torch.backends.cuda.is_built():
        raise ConfigError(
            f"train.device is cuda, and this torch ({torch.__version__}) is built without CUDA",
            fix="install a CUDA build of torch, or set train.device to cpu",
        )
    try:
        device = choose_device(config, ranks)
        if device.type == "cpu":
            lost = gpu_allotted and config.train.device == "auto" and torch.backends.cuda.is_built()
            return ["a GPU was allotted, and CUDA finds none"] if lost else []
        return [*_compute_faults(device), *_occupied_faults(device)]
    except BadNode as error:
        return [error.what]
    except RuntimeError as error:  # torch's word for whatever the driver says
        return [f"GPU {ranks.local_rank} cannot be used: {_first_line(error)}"]


def _compute_faults(device: torch.device) -> list[str]:
    """A product with a known exact result: every entry is the number of its terms."""
    size = 256
    ones = torch.ones(size, size, device=device)
    wrong = int((ones @ ones != size).sum().item())
    return [f"{device} multiplies wrongly: {wrong} of {size * size} entries"] if wrong else []


def _occupied_faults(
    device: torch.device,
    *,
    memory: Callable[[torch.device], tuple[int, int]] | None = None,
    patience_s: float = GPU_PATIENCE_S,
) -> list[str]:
    memory = memory or torch.cuda.mem_get_info
    deadline = time.monotonic() + patience_s
    while True:
        free, total = memory(device)
        if free >= GPU_FREE_FRACTION * total:
            return []
        if time.monotonic() >= deadline:
            return [
                f"{device} has {free / 2**30:.1f} of {total / 2**30:.1f} GiB free: "
                "another process holds the rest"
            ]
        time.sleep(min(1.0, patience_s))


def memory_faults(meminfo: Path = Path("/proc/meminfo")) -> list[str]:
    """Whether the host has memory left, as Linux estimates it."""
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        kib = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return []  # no Linux, or one that hides it: nothing is known against the node
    if kib * 1024 >= HOST_MEMORY_BYTES:
        return []
    return [f"only {kib // 1024} MiB of memory are left, {HOST_MEMORY_BYTES // MIB} are needed"]


def scratch_faults() -> list[str]:
    """Whether the folder for temporary files takes one, gives it back, and has space.

    Python itself would fall back to another folder without a word; most libraries do not.
    """
    folder = Path(os.environ.get("TMPDIR") or "/tmp")
    named = f"TMPDIR {folder}" if os.environ.get("TMPDIR") else f"scratch {folder}"
    if not folder.is_dir():
        return [f"{named} is no folder"]
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            written = os.urandom(_PROBE_BYTES)
            file.write(written)
            file.seek(0)
            if file.read() != written:
                return [f"{named} gives back other bytes than were written"]
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return [f"{named} cannot be written: {error.strerror}"]
    if free < SCRATCH_BYTES:
        return [f"{named} has {free // MIB} MiB free, {SCRATCH_BYTES // MIB} are needed"]
    return []


def shared_memory_faults(
    config: RunConfig, ranks: Ranks, folder: Path = SHARED_MEMORY
) -> list[str]:
    """Whether the data workers of all ranks here find room for the batches that they hand over."""
    loaders = 2 if config.train.eval_every_steps else 1
    ahead = ranks.local_world_size * config.data.num_workers * PREFETCH * loaders
    needed = ahead * config.train.micro_batch_size * _sample_bytes(config)
    if not needed or not folder.is_dir():
        return []
    free = shutil.disk_usage(folder).free
    if free >= needed:
        return []
    return [
        f"{folder} has {free / MIB:.1f} MiB free, the data workers need {needed / MIB:.1f} MiB "
        f"({ahead} batches of {config.train.micro_batch_size} images): {MORE_SHARED_MEMORY}, or "
        "lower data.num_workers (0 needs none)"
    ]


def _sample_bytes(config: RunConfig) -> int:
    """Bytes of an image, or of its features, as a worker hands them over: most of a sample."""
    try:
        sizes = open_bundle(config.model.weights).architecture
    except MgptError:  # the load reports it
        return 3 * _PUBLISHED_SIZE**2
    if config.data.feature_cache is not None:
        return 2 * sizes.num_image_tokens * sizes.projector_in
    return 3 * sizes.image_size**2


def run_folder_faults(
    run: Path, rank: int, *, sleep: Callable[[float], object] = time.sleep
) -> tuple[str, list[str]]:
    """Why the run's folder cannot be written from here, and what its clock says of ours.

    A mount that is read-only or stale for a moment is waited for, as retry.py has it.

    Returns:
        reason (empty if it can), and faults of the clock.
    """
    probe = run / f".probe-{rank}-{os.getpid()}"
    try:
        off_s = retry_storage(
            lambda: _write_probe(probe), vanished=lambda: not run.exists(), sleep=sleep
        )
    except (OSError, StorageTrouble) as error:
        with suppress(OSError):
            probe.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in _NO_FAULT_OF_THE_NODE:
            return "", []
        return f"the run's folder {run} cannot be written: {_first_line(error)}", []
    if abs(off_s) <= CLOCK_TOLERANCE_S:
        return "", []
    return "", [f"the clock is {off_s:+.0f} s off the file system's of {run}"]


def _write_probe(probe: Path) -> float:
    """Seconds by which our clock is ahead of the file system's."""
    with probe.open("wb") as file:
        file.write(b"x")
        file.flush()
        os.fsync(file.fileno())
        off_s = time.time() - os.fstat(file.fileno()).st_mtime
    probe.unlink()
    return off_s


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)

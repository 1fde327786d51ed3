"""Which device, which precision, how many threads."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import BadNode


def choose_device(config: RunConfig, ranks: Ranks) -> torch.device:
    """Device of this rank.

    Also settles how cuBLAS computes there: torch and cuBLAS look at it once, at the process's very
    first matrix product, be it only a check of the node.

    Raises:
        BadNode: if a GPU was asked for and none can be used here.
    """
    if config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    wanted = config.train.device
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    number = 0 if _is_bound_to_one() else ranks.local_rank
    if not torch.cuda.is_available() or number >= torch.cuda.device_count():
        raise BadNode(
            f"rank {ranks.rank} finds no GPU {number} on {os.uname().nodename}: "
            f"{torch.cuda.device_count()} visible, "
            f"CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES')!r}",
            fix="check `nvidia-smi` on that node, or exclude it",
        )
    device = torch.device("cuda", number)
    torch.cuda.set_device(device)
    return device


def _is_bound_to_one() -> bool:
    """Whether this rank was given one GPU for itself (``--gpus-per-task``, ``--gpu-bind``).

    A node that has lost all GPUs but one still names all of them in the variable.
    """
    named = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return len(named) == 1 and torch.cuda.device_count() == 1


def set_up_process(config: RunConfig, ranks: Ranks) -> None:
    """Threads and determinism, after :func:`choose_device`.

    Sums come out in another order with another thread count.
    """
    threads = config.train.num_threads
    if not threads:
        threads = max(1, len(os.sched_getaffinity(0)) // ranks.local_world_size)
    torch.set_num_threads(threads)
    if config.deterministic:
        # Warnings rather than errors: where no deterministic kernel exists, the run should say so
        # and go on.
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        # Filling fresh memory with NaN finds bugs and costs a pass over every tensor.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


@contextmanager
def strict_determinism() -> Iterator[None]:
    """For the backward pass of a deterministic run: flash attention takes a mere warning lightly.

    With ``warn_only`` it warns and adds up in any order, although it can do otherwise.
    """
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    if not lenient:
        yield
        return
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=True)


def peak_memory_gib(device: torch.device) -> Callable[[], float]:
    """Reader of the largest memory allocated on ``device``; 0 on a CPU."""
    if device.type != "cuda":
        return lambda: 0.0
    return lambda: torch.cuda.max_memory_allocated(device) / 2**30

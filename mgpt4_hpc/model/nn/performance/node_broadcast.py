"""Weights that one rank per node reads from storage and hands to its neighbours.

Eight ranks that each read 13 GB ask a shared filesystem for 104 GB and hold as much in host memory;
between the GPUs of a node the same bytes travel in a fraction of a second.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from itertools import zip_longest
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import nn

from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import WeightsError

LocalRunner: TypeAlias = Callable[[Callable[[], Any]], Any]
"""Does something for a rank that needs no other one, and may so be tried again or broken off:
takes what is to be done, returns its result."""


def load_once_per_node(
    load: Callable[[], nn.Module],
    plan: Callable[[], nn.Module],
    ranks: Ranks,
    device: torch.device,
    run_locally: LocalRunner = lambda read: read(),
) -> nn.Module:
    """``load()`` on one rank of each node; the others take its numbers into ``plan()``.

    Every rank must call it. A failure of one reader is raised on all ranks, and so is what breaks
    it off, be it no Exception: a rank that left by itself would leave the others waiting for ever.

    Args:
        load: reads the module, onto ``device``.
        plan: the same module without numbers, on the meta device; its types may differ.
        ranks: this process among the others.
        device: of this rank.
        run_locally: does ``load()``.
    """
    hosts = ranks.gather(socket.gethostname())
    reader = hosts.index(hosts[ranks.rank])
    module: nn.Module | None = None
    failure: BaseException | None = None
    try:
        module = run_locally(load) if ranks.rank == reader else _emptied(plan(), device)
    except BaseException as error:  # noqa: BLE001 - sent to every rank, and raised there
        failure = error
    ranks.raise_any(failure)
    assert module is not None
    contents = ranks.gather(_contents(module))
    for rank, host in enumerate(hosts):  # every rank looks at all, so that all raise
        _compare(contents, rank, hosts.index(host))
    # Every rank takes part in making every node's group.
    groups: dict[str, Any] = {
        host: dist.new_group([rank for rank, other in enumerate(hosts) if other == host])
        for host in dict.fromkeys(hosts)
    }
    for tensor in [*module.parameters(), *module.buffers()]:
        dist.broadcast(tensor.detach(), src=reader, group=groups[hosts[ranks.rank]])
    return module


def _emptied(planned: nn.Module, device: torch.device) -> nn.Module:
    """Space for its numbers; a parameter with two names, as an output matrix that is the
    embedding, stays one, which ``to_empty`` alone would make two.
    """
    first: dict[nn.Parameter, str] = {}
    seconds: dict[str, str] = {}
    for name, parameter in planned.named_parameters(remove_duplicate=False):
        if first.setdefault(parameter, name) != name:
            seconds[name] = first[parameter]
    planned.to_empty(device=device)
    for name, other in seconds.items():
        owner, _, leaf = name.rpartition(".")
        setattr(planned.get_submodule(owner), leaf, planned.get_parameter(other))
    return planned


def _contents(module: nn.Module) -> list[str]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return [f"{name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in tensors]


def _compare(contents: list[list[str]], rank: int, reader: int) -> None:
    """Numbers go by their order alone, so both sides must have the same."""
    for own, read in zip_longest(contents[rank], contents[reader]):
        if own != read:
            raise WeightsError(
                f"rank {rank} expects {own} where rank {reader} has read {read}",
                fix="set model.read_once_per_node to no",
            )

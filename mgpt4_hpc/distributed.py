"""Ranks: who am I, how do we meet, what do we agree on.

Launchers describe a rank with torchrun's variables (RANK, LOCAL_RANK, WORLD_SIZE,
LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT); other launchers are translated to them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

from mgpt4_hpc.errors import RendezvousError

if TYPE_CHECKING:
    import torch
    from torch.distributed import TCPStore

RENDEZVOUS_TIMEOUT_S = 600.0
"""How long ranks wait for each other at the start: the slowest node may still be loading files."""

COLLECTIVE_TIMEOUT_S = 1200.0
"""Longest wait inside a step's collective without watchdogs; a peer that died is noticed at once,
one that hangs is not."""

PEER_TIMEOUT = timedelta(hours=24)
"""Longest wait for what one rank does for all: a first start may index shards for hours."""

_patient: torch.distributed.ProcessGroup | None = None
"""Gloo group with that patience; None before :func:`start_group` made one."""

_PORT_RANGE = (20000, 32000)  # below Linux's ephemeral ports, so that no client socket sits there
_NUM_PORTS = 16
_KNOCK_S = 10.0
"""Patience with the process that listens on a candidate port."""


@dataclass(frozen=True)
class Ranks:
    """This process's place among the others, and what they do together.

    Works without a process group when ``world_size`` is 1 and none was made.
    """

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Ranks:
        """Read torchrun's variables; absent ones mean a single process."""
        return cls(
            rank=int(environ.get("RANK", 0)),
            local_rank=int(environ.get("LOCAL_RANK", 0)),
            world_size=int(environ.get("WORLD_SIZE", 1)),
            local_world_size=int(environ.get("LOCAL_WORLD_SIZE", 1)),
        )

    @property
    def is_first(self) -> bool:
        """Whether this rank speaks for all."""
        return self.rank == 0

    def sum_on_cpu(self, values: Sequence[float]) -> list[float]:
        """Sum each of ``values`` over the ranks, in one gloo all-reduce that touches no GPU."""
        return self._sum(values, None)

    def _sum(
        self, values: Sequence[float], group: torch.distributed.ProcessGroup | None
    ) -> list[float]:
        import torch

        if self.world_size == 1:
            return [float(value) for value in values]
        summed = torch.tensor(values, dtype=torch.float64)
        torch.distributed.all_reduce(summed, group=group)
        return list(summed.tolist())

    def broadcast(self, value: Any) -> Any:
        """What rank 0 holds, on every rank, however long the others have to wait for it.

        Ranks that list a folder on NFS can disagree.
        """
        import torch

        if self.world_size == 1:
            return value
        box = [value if self.is_first else None]
        torch.distributed.broadcast_object_list(
            box, src=0, device=torch.device("cpu"), group=_patient
        )
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """What each rank holds, in rank order, on every rank."""
        import torch

        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(gathered, value, group=_patient)
        return gathered

    def first_does(self, action: Any) -> Any:
        """Run ``action()`` on rank 0 and return its result, or raise its error, on every rank."""
        result: Any = None
        failure: Exception | None = None
        if self.is_first:
            try:
                result = action()
            except Exception as error:  # noqa: BLE001 - handed to every rank and raised there
                failure = error
        raised: BaseException | None
        result, raised = self.broadcast((result, failure and _portable(failure)))
        if raised is not None:
            raise failure or raised
        return result

    def raise_any(self, failure: BaseException | None) -> None:
        """Raise the failure of any rank on every rank; its own, where a rank has one."""
        for error in self.gather(failure and _portable(failure)):
            if error is not None:
                raise failure or error

    def any_says(self, yes: bool) -> bool:
        """Whether any rank says yes; the same answer on every rank, once the last one is here."""
        return self._sum([float(yes)], _patient)[0] > 0

    def barrier(self) -> None:
        """Wait until every rank is here, however long that takes."""
        self._sum([0.0], _patient)


def _portable(error: BaseException) -> BaseException:
    """``error``, or its text where it does not survive the way to another process."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own object, a moment old
    except Exception:  # noqa: BLE001 - a foreign class may do anything there
        return RuntimeError(f"rank 0: {type(error).__name__}: {error}")
    return error


def candidate_ports(token: str) -> list[int]:
    """Ports to meet at, the same on every rank, other ones for every job and attempt."""
    low, high = _PORT_RANGE
    seed = int.from_bytes(hashlib.blake2b(token.encode(), digest_size=8).digest(), "big")
    return [low + (seed + k * 7919) % (high - low) for k in range(_NUM_PORTS)]


def rendezvous(
    ranks: Ranks, host: str, token: str, *, timeout_s: float = RENDEZVOUS_TIMEOUT_S
) -> TCPStore:
    """Meet at ``host``: rank 0 listens on the first free candidate port, the others find it.

    Another program may hold a port, so a rank that connects asks for the token, and tries the next
    port if the answer is not ours.

    Raises:
        RendezvousError: if no port works in time; it names host and ports.
    """
    ports = candidate_ports(token)
    deadline = time.monotonic() + timeout_s
    store = (
        _listen(host, ports, token, ranks.world_size)
        if ranks.is_first
        else _find(host, ports, token, deadline)
    )
    if store is None:
        raise RendezvousError(
            f"rank {ranks.rank} found no rank 0 at {host} on ports {ports[0]}...{ports[-1]} "
            f"within {timeout_s:.0f} s",
            why="rank 0 died before it listened, or a firewall stands between the nodes",
            fix="see rank 0's log first; then try the job on one node",
        )
    return store


def _listen(host: str, ports: Iterable[int], token: str, world_size: int) -> TCPStore | None:
    from torch.distributed import TCPStore

    for port in ports:
        try:
            store = TCPStore(
                host,
                port,
                world_size=world_size,
                is_master=True,
                wait_for_workers=False,
                timeout=timedelta(seconds=RENDEZVOUS_TIMEOUT_S),
            )
        except RuntimeError as error:
            if "EADDRINUSE" in str(error) or os.strerror(errno.EADDRINUSE) in str(error):
                continue
            raise
        store.set("mgpt4/token", token)
        return store
    return None


def _find(host: str, ports: Sequence[int], token: str, deadline: float) -> TCPStore | None:
    pause_s = 0.1
    knocks: dict[int, _Knock] = {}
    while time.monotonic() < deadline:
        for port in ports:
            if not _answers(host, port):
                continue
            knock = knocks.get(port)
            if knock is None or not knock.is_alive():
                knock = knocks[port] = _Knock(host, port, token)
                knock.start()
                knock.join(max(0.0, min(_KNOCK_S, deadline - time.monotonic())))
            if knock.store is not None:
                return knock.store
        time.sleep(pause_s)
        pause_s = min(pause_s * 1.5, 2.0)
    return None


class _Knock(threading.Thread):
    """Asks one port for our token.

    In a thread of its own, because TCPStore waits for ever, whatever its time-out, for a stranger
    that accepts connections and never answers.
    """

    def __init__(self, host: str, port: int, token: str) -> None:
        super().__init__(name=f"rendezvous-{port}", daemon=True)
        self.host, self.port, self.token = host, port, token
        self.store: TCPStore | None = None

    def run(self) -> None:
        """Connect, compare, keep the store if it is ours."""
        from torch.distributed import TCPStore

        patience = timedelta(seconds=_KNOCK_S)
        try:
            store = TCPStore(self.host, self.port, wait_for_workers=False, timeout=patience)
            if store.get("mgpt4/token").decode() == self.token:
                store.set_timeout(timedelta(seconds=RENDEZVOUS_TIMEOUT_S))
                self.store = store
        except (RuntimeError, ValueError):
            pass  # not a store, or one that does not know our token


def _answers(host: str, port: int) -> bool:
    import socket

    try:
        with socket.create_connection((host, port), timeout=5):
            return True
    except OSError:
        return False


def start_group(
    ranks: Ranks,
    device: torch.device,
    store: TCPStore | None = None,
    *,
    timeout_s: float = COLLECTIVE_TIMEOUT_S,
) -> None:
    """Make the process group: gloo for CPU tensors, NCCL beside it for CUDA ones.

    Args:
        ranks: this process's place.
        device: where the projector's gradients live.
        store: of :func:`rendezvous`; without it, torchrun's own.
        timeout_s: longest wait inside a step's collective.
    """
    global _patient
    import torch

    if ranks.world_size == 1 or torch.distributed.is_initialized():
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(
        backend=backend,
        store=store,
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(seconds=timeout_s),
    )
    group = torch.distributed.new_group(backend="gloo", timeout=PEER_TIMEOUT)
    _patient = cast("torch.distributed.ProcessGroup", group)  # every rank is a member


def collective_timeout_s(hang_timeout_s: float) -> float:
    """Time-out for a step's collectives.

    Watchdogs (``hang_timeout_s`` above 0) end a hang sooner, and do not count the time that Slurm
    suspends the job; a collective's time-out does.
    """
    return PEER_TIMEOUT.total_seconds() if hang_timeout_s > 0 else COLLECTIVE_TIMEOUT_S


def end_group() -> None:
    """Take the process group down, if there is one."""
    global _patient
    import torch

    _patient = None
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

"""Ranks meet in spite of strangers, and agree. Real sockets and processes, no torchrun."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch

from mgpt4_hpc import distributed
from mgpt4_hpc.distributed import Ranks, candidate_ports, rendezvous, start_group
from mgpt4_hpc.errors import ConfigError, RendezvousError
from tests.support.forked import in_processes

HOST = "127.0.0.1"


@pytest.fixture
def token() -> Iterator[str]:
    """A token whose ports are all free."""
    for number in range(100):
        token = f"test-{os.getpid()}-{time.time_ns()}-{number}"
        if not any(_taken(port) for port in candidate_ports(token)):
            yield token
            return
    raise AssertionError("no free ports")


def _taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(0.2)
        return probe.connect_ex((HOST, port)) == 0


def _listening(port: int) -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((HOST, port))
    server.listen()
    return server


def meet(token: str, world_size: int, *, rank0_late_s: float = 0.0) -> list[Any]:
    """Each rank's sum over all ranks of (rank + 1), or what it raised."""

    def rank_process(rank: int) -> Callable[[], float]:
        def run() -> float:
            torch.set_num_threads(1)
            if rank == 0 and rank0_late_s:
                threading.Event().wait(rank0_late_s)
            ranks = Ranks(rank, rank, world_size, world_size)
            store = rendezvous(ranks, HOST, token, timeout_s=60)
            start_group(ranks, torch.device("cpu"), store, timeout_s=60)
            total = ranks.sum_on_cpu([rank + 1.0])[0]
            ranks.barrier()
            return total

        return run

    return in_processes([rank_process(rank) for rank in range(world_size)])


@pytest.mark.slow
def test_four_ranks_meet_though_rank_0_is_late(token: str) -> None:
    assert meet(token, 4, rank0_late_s=0.3) == [10.0] * 4


@pytest.mark.slow
def test_a_stranger_that_never_answers_is_passed_by(
    token: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # TCPStore itself would wait for ever for this one's answer, whatever its time-out.
    monkeypatch.setattr(distributed, "_KNOCK_S", 0.5)
    with _listening(candidate_ports(token)[0]):
        assert meet(token, 2) == [3.0, 3.0]


@pytest.mark.slow
def test_a_stranger_that_hangs_up_is_passed_by(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "_KNOCK_S", 0.5)
    with _listening(candidate_ports(token)[0]) as server:

        def hang_up() -> None:
            try:
                while True:
                    server.accept()[0].close()
            except OSError:
                return

        threading.Thread(target=hang_up, daemon=True).start()
        try:
            assert meet(token, 2) == [3.0, 3.0]
        finally:
            server.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
@pytest.mark.parametrize("foreign_token", ["slurm-1-0", None])
def test_another_jobs_store_is_passed_by(
    token: str, foreign_token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "_KNOCK_S", 0.5)
    foreign = torch.distributed.TCPStore(
        HOST,
        candidate_ports(token)[0],
        is_master=True,
        wait_for_workers=False,
        timeout=timedelta(seconds=5),
    )
    if foreign_token is not None:
        foreign.set("mgpt4/token", foreign_token)
    assert meet(token, 2) == [3.0, 3.0]
    del foreign


@pytest.mark.slow
def test_a_rank_that_waits_in_vain_says_where_and_why(token: str) -> None:
    with pytest.raises(RendezvousError, match=rf"rank 1 found no rank 0 at {HOST} on ports \d+"):
        rendezvous(Ranks(1, 1, 2, 2), HOST, token, timeout_s=0.3)


def test_ports_differ_by_token_and_stay_in_the_range() -> None:
    one, other = candidate_ports("slurm-1-0"), candidate_ports("slurm-1-1")
    assert one == candidate_ports("slurm-1-0")
    assert len({*one, *other}) == 32
    assert all(20000 <= port < 32000 for port in one + other)


class Unpicklable(Exception):
    """As many libraries' exceptions: takes two arguments, and hands one on."""

    def __init__(self, what: str, where: str) -> None:
        super().__init__(f"{what} in {where}")


def test_two_ranks_agree(token: str) -> None:
    def rank_process(rank: int) -> Callable[[], list[Any]]:
        def run() -> list[Any]:
            torch.set_num_threads(1)
            ranks = Ranks(rank, rank, 2, 2)
            start_group(ranks, torch.device("cpu"), rendezvous(ranks, HOST, token, timeout_s=60))
            seen: list[Any] = [
                ranks.sum_on_cpu([0.5, 2.0**40 + rank]),
                ranks.broadcast({"from": rank}),
                ranks.gather(f"rank {rank}"),
                ranks.first_does(lambda: f"done by {rank}"),
                ranks.any_says(rank == 1),
                ranks.any_says(False),
            ]
            for error in (
                ConfigError("no", faults=["a", "b"], fix="mend"),
                Unpicklable("hole", "bucket"),
            ):
                try:
                    ranks.first_does(lambda error=error: _raise(error))
                except Exception as found:  # noqa: BLE001
                    seen.append((type(found).__name__, str(found)))
            ranks.barrier()
            return seen

        return run

    first, second = in_processes([rank_process(0), rank_process(1)])
    common = [[1.0, 2.0**41 + 1], {"from": 0}, ["rank 0", "rank 1"], "done by 0", True, False]
    told = ("ConfigError", "no\n  - a\n  - b\n  fix: mend")
    assert first == [*common, told, ("Unpicklable", "hole in bucket")]
    assert second == [*common, told, ("RuntimeError", "rank 0: Unpicklable: hole in bucket")]


def _raise(error: Exception) -> None:
    raise error


def test_one_rank_needs_no_group() -> None:
    ranks = Ranks.from_environment({})
    assert ranks == Ranks(0, 0, 1, 1) and ranks.is_first
    assert ranks.sum_on_cpu([1, 2]) == [1.0, 2.0]
    assert ranks.gather(7) == [7] and ranks.broadcast(7) == 7 and ranks.first_does(lambda: 7) == 7
    with pytest.raises(KeyError):
        ranks.first_does(lambda: {}["x"])
    ranks.barrier()


def test_torchruns_variables_are_read() -> None:
    environ = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}
    assert Ranks.from_environment(environ) == Ranks(5, 1, 8, 4)

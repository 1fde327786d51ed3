"""Tests of ``train/health/node_consensus.py``."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgpt4_hpc.distributed import Ranks, rendezvous
from mgpt4_hpc.errors import BadNode, MgptError, RendezvousError, StorageTrouble
from mgpt4_hpc.train.health.node_check import NodeFindings
from mgpt4_hpc.train.health.node_consensus import NodeConsensus, judge
from mgpt4_hpc.train.stopping.stop import Interrupted, SignalStop
from tests.support.forked import in_processes


def nodes_of(error: MgptError | None) -> dict[str, str]:
    assert isinstance(error, BadNode)
    return dict(error.nodes)


def test_each_node_is_named_once_with_all_its_faults() -> None:
    found = [
        NodeFindings("a", time=5.0),
        NodeFindings("b", ("x", "y"), time=5.0),
        NodeFindings("b", ("y", "z"), time=5.0),
    ]
    assert nodes_of(judge(found)) == {"b": "x; y; z"}
    assert judge(found[:1]) is None


def test_a_folder_that_nobody_can_write_is_no_nodes_fault() -> None:
    cut_off = NodeFindings("a", storage="cannot be written: Stale file handle", time=5.0)
    assert isinstance(judge([cut_off]), StorageTrouble)
    both = [cut_off, NodeFindings("b", time=5.0)]
    assert nodes_of(judge(both)) == {"a": "cannot be written: Stale file handle"}


def test_a_clock_is_held_to_rank_0s() -> None:
    found = [
        NodeFindings("a", time=1000.0),
        NodeFindings("b", time=900.0),
        NodeFindings("c", time=1095.0),
    ]
    told = nodes_of(judge(found, began=1000.0, ended=1030.0))
    assert told == {
        "b": "its clock is -100 s off that of a",
        "c": "its clock is +65 s off that of a",
    }


def test_a_wrong_clock_of_rank_0_is_not_its_peers_fault() -> None:
    found = [
        NodeFindings("a", time=1300.0),
        NodeFindings("b", time=1000.0),
        NodeFindings("c", time=1001.0),
    ]
    assert nodes_of(judge(found, began=1300.0, ended=1301.0)) == {
        "a": "its clock is +300 s off that of most others"
    }
    # One against one: rank 0's counts, for someone must go.
    told = nodes_of(judge(found[:2], began=1300.0, ended=1301.0))
    assert told == {"b": "its clock is -300 s off that of a"}


def agree(
    findings: list[NodeFindings | None], tmp_path: Path, *, late: int = 0, arrive_s: float = 20
) -> list[Any]:
    """Each rank's verdict and whether rank 0 had acted when it left; None never answers.

    Rank ``late``, if it is not 0, comes when an answer would be overdue.
    """
    token = f"nodes-{os.getpid()}-{time.time_ns()}"
    world = len(findings)
    timeout_s = 1.0 if late or None in findings else 20.0
    acted = tmp_path / "acted"
    alive: list[object] = []

    def rank_process(rank: int) -> Callable[[], Any]:
        def run() -> Any:
            ranks = Ranks(rank, rank, world, world)
            if late and rank == late:
                time.sleep(2 * timeout_s)
            store = rendezvous(ranks, "127.0.0.1", token, timeout_s=60)
            alive.append(store)  # as in a job, which goes on

            def check() -> NodeFindings:
                mine = findings[rank]
                while mine is None:
                    time.sleep(60)
                return mine

            node = f"n{rank}"
            consensus = NodeConsensus(store, ranks, node, timeout_s=timeout_s, arrive_s=arrive_s)
            error = consensus.verdict(check)
            if error is not None:
                consensus.first_does(acted.touch)
            return error and str(error), acted.exists()

        return run

    hanging = [_forked(rank_process(rank)) for rank in range(world) if findings[rank] is None]
    try:
        return in_processes([rank_process(r) for r in range(world) if findings[r] is not None])
    finally:
        for pid in hanging:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _forked(action: Callable[[], Any]) -> int:
    pid = os.fork()
    if pid == 0:
        action()
        os._exit(0)
    return pid


@pytest.mark.slow
def test_all_ranks_hear_the_same_and_wait_for_rank_0(tmp_path: Path) -> None:
    now = time.time()
    fit, unfit = NodeFindings("n0", time=now), NodeFindings("n1", ("no GPU",), time=now)
    answers = agree([fit, unfit, fit], tmp_path)
    assert len({text for text, _ in answers}) == 1
    assert "bad node: n1: no GPU" in answers[0][0]
    assert all(acted for _, acted in answers)


def test_fit_nodes_go_on(tmp_path: Path) -> None:
    now = time.time()
    assert (
        agree([NodeFindings("a", time=now), NodeFindings("b", time=now)], tmp_path)
        == [(None, False)] * 2
    )


@pytest.mark.slow
def test_a_rank_that_hangs_while_it_looks_makes_its_node_unfit(tmp_path: Path) -> None:
    answers = agree([NodeFindings("n0", time=time.time()), None], tmp_path)
    assert "n1: rank 1 did not finish looking at it" in answers[0][0]


@pytest.mark.slow
def test_a_node_that_is_slow_to_come_is_not_blamed(tmp_path: Path) -> None:
    now = time.time()
    findings: list[NodeFindings | None] = [
        NodeFindings("n0", time=now),
        NodeFindings("n1", time=now),
    ]
    assert agree(findings, tmp_path, late=1) == [(None, False)] * 2


def test_a_rank_that_never_comes_is_told_by_its_number(tmp_path: Path) -> None:
    now = time.time()
    alone = NodeConsensus(
        rendezvous(Ranks(0, 0, 3, 3), "127.0.0.1", f"absent-{os.getpid()}"),
        Ranks(0, 0, 3, 3),
        "n0",
        arrive_s=0.1,
    )
    error = alone.verdict(lambda: NodeFindings("n0", time=now))
    assert isinstance(error, RendezvousError)
    assert "did not come within 0 s: 1, 2" in str(error)


@pytest.mark.slow
def test_a_stop_signal_is_heard_while_ranks_wait_for_each_other() -> None:
    def waiting() -> str:
        stop = SignalStop((signal.SIGTERM,)).install()
        store = rendezvous(Ranks(0, 0, 2, 2), "127.0.0.1", f"stop-{os.getpid()}")
        consensus = NodeConsensus(store, Ranks(0, 0, 2, 2), "n0")
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        try:
            with stop.interrupting():
                consensus.verdict(lambda: NodeFindings("n0"))
        except Interrupted:
            return "interrupted"
        return "not interrupted"

    assert in_processes([waiting], timeout_s=20) == ["interrupted"]

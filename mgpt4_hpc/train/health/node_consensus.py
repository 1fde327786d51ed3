"""The ranks' findings about their nodes, and one verdict that all of them hear.

The process group cannot carry it: a rank whose GPU is dead never gets that far, and the others
would wait for it at the rendezvous until the time-out. So they speak through the store by which
they met, which needs nothing but a network.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

from mgpt4_hpc.distributed import RENDEZVOUS_TIMEOUT_S, Ranks
from mgpt4_hpc.errors import BadNode, MgptError, RendezvousError, StorageTrouble
from mgpt4_hpc.train.health.node_check import CLOCK_TOLERANCE_S, NodeFindings

if TYPE_CHECKING:
    from torch.distributed import TCPStore

CHECK_TIMEOUT_S = 180.0
"""A rank that has not answered after this time hangs in a driver or on a dead mount."""
_LEAVE_S = 60.0
"""Beyond what a rank may take itself, how long the others wait for it; one that is gone is noticed
at once."""
_SETTLE_S = 360.0
"""Longest that the others wait while rank 0 requeues the job: a busy controller answers late, and
a rank that leaves meanwhile ends rank 0 between the requeue and the exclusion of the node."""

_PREFIX = "mgpt4/node"


class NodeConsensus:
    """One rank's seat among those who judge their nodes.

    Args:
        store: of the rendezvous; None for a single rank, which judges alone.
        ranks: this process among the others.
        node: name of its node.
        timeout_s: patience with a rank that does not answer.
        arrive_s: patience with one that is not there yet: a node may be slow to load libraries or
            an image, and nothing is wrong with it.
    """

    def __init__(
        self,
        store: TCPStore | None,
        ranks: Ranks,
        node: str,
        *,
        timeout_s: float = CHECK_TIMEOUT_S,
        arrive_s: float = RENDEZVOUS_TIMEOUT_S,
    ) -> None:
        self._store = store
        self._ranks = ranks
        self._node = node
        self._timeout_s = timeout_s
        self._arrive_s = arrive_s
        self._others = set(range(1, ranks.world_size))
        """Ranks that are heard; rank 0's book."""

    def verdict(self, check: Callable[[], NodeFindings]) -> MgptError | None:
        """Look at the own node, hear of the others; the same answer on every rank.

        Args:
            check: looks at this rank's node.

        Returns:
            None if all nodes are fit; :class:`BadNode` with the nodes and their faults;
            :class:`StorageTrouble` where none of the nodes can write the run's folder; or
            :class:`RendezvousError` where not all ranks came.

        Raises:
            RendezvousError: rank 0 gave no verdict in time.
        """
        if self._store is None:
            return judge([check()])
        if self._ranks.is_first:
            return self._preside(check)
        self._set(f"host/{self._ranks.rank}", self._node)
        self._get("called", self._arrive_s + _LEAVE_S)
        self._set(f"found/{self._ranks.rank}", asdict(check()))
        # Rank 0 looks too, and may itself wait its full time for the slowest of us.
        return _error_of(self._get("verdict", 2 * self._timeout_s + _LEAVE_S))

    def first_does(self, action: Callable[[], object]) -> None:
        """Let rank 0 act on a bad verdict while the others wait; no rank leaves before.

        A rank that leaves with a bad code gets the others killed; rank 0 takes the store along.
        """
        if not self._ranks.is_first:
            try:
                self._get("settled", _SETTLE_S)
                self._set(f"heard/{self._ranks.rank}", True)
            except RendezvousError:
                pass  # it died over it: then the batch script decides
            return
        try:
            action()
        finally:
            if self._store is not None:
                self._set("settled", True)
                self._missing("heard", _LEAVE_S)  # no rank may lose the store in mid-sentence

    def _preside(self, check: Callable[[], NodeFindings]) -> MgptError | None:
        if absent := self._missing("host", self._arrive_s):
            error = _not_come(
                f"of {self._ranks.world_size} ranks these did not come within "
                f"{self._arrive_s:.0f} s: {', '.join(map(str, sorted(absent)))}"
            )
            self._set("verdict", _plain(error))
            self._set("called", True)
            return error
        began = time.time()
        self._set("called", True)  # a rank that reads its clock after this reads it after `began`
        findings = {0: check()}
        missing = self._missing("found", self._timeout_s)
        self._others -= missing
        for rank in range(1, self._ranks.world_size):
            if rank in missing:
                node = str(self._get(f"host/{rank}", self._timeout_s))
                fault = f"rank {rank} did not finish looking at it within {self._timeout_s:.0f} s"
                findings[rank] = NodeFindings(node, (fault,), "", began)
            else:
                text = self._get(f"found/{rank}", self._timeout_s)
                findings[rank] = NodeFindings(
                    text["node"], tuple(text["faults"]), text["storage"], text["time"]
                )
        verdict = judge([findings[rank] for rank in sorted(findings)], began, time.time())
        self._set("verdict", _plain(verdict))
        return verdict

    def _missing(self, what: str, timeout_s: float) -> set[int]:
        """Which of the other ranks have not set their ``what`` within the time."""
        assert self._store is not None
        keys = {rank: f"{_PREFIX}/{what}/{rank}" for rank in self._others}
        if not keys or self._is_set(list(keys.values()), timeout_s):
            return set()
        return {rank for rank, key in keys.items() if not self._store.check([key])}

    def _is_set(self, keys: list[str], timeout_s: float) -> bool:
        """Whether all of them are set within the time.

        Asks again and again: inside the store's own wait, a stop signal would be heard too late.
        """
        assert self._store is not None
        deadline, pause_s = time.monotonic() + timeout_s, 0.02
        while not self._store.check(keys):
            if time.monotonic() >= deadline:
                return False
            time.sleep(pause_s)
            pause_s = min(1.5 * pause_s, 0.5)
        return True

    def _set(self, key: str, value: Any) -> None:
        assert self._store is not None
        try:
            self._store.set(f"{_PREFIX}/{key}", json.dumps(value))
        except RuntimeError as error:
            raise RendezvousError(f"rank {self._ranks.rank} lost rank 0: {error}") from error

    def _get(self, key: str, timeout_s: float) -> Any:
        assert self._store is not None
        lost: RuntimeError | None = None
        try:
            if self._is_set([f"{_PREFIX}/{key}"], timeout_s):
                return json.loads(self._store.get(f"{_PREFIX}/{key}"))
        except RuntimeError as error:
            lost = error
        raise RendezvousError(
            f"rank {self._ranks.rank} heard nothing from rank 0 about the nodes "
            + ("any more" if lost else f"within {timeout_s:.0f} s"),
            why="rank 0 died or hangs while it looks at its node",
            fix="see rank 0's log",
        ) from lost


def judge(
    findings: Sequence[NodeFindings], began: float = 0.0, ended: float = float("inf")
) -> MgptError | None:
    """What all findings together say.

    Args:
        findings: one per rank; rank 0's first.
        began: rank 0's clock before any other rank read its own.
        ended: the same afterwards.
    """
    faults: dict[str, list[str]] = {}
    for finding in findings:
        of_node = faults.setdefault(finding.node, [])
        of_node += [fault for fault in finding.faults if fault not in of_node]
    for node, fault in _clock_faults(findings, began, ended).items():
        faults[node].append(fault)
    cut_off = {finding.node: finding.storage for finding in findings if finding.storage}
    if cut_off and set(cut_off) != {finding.node for finding in findings}:
        for node, reason in cut_off.items():
            faults[node].append(reason)
        cut_off = {}
    bad = {node: "; ".join(of_node) for node, of_node in faults.items() if of_node}
    if bad:
        return bad_node(bad)
    if cut_off:
        return StorageTrouble(
            next(iter(cut_off.values())),
            why="no node of this job can write there, so it is the storage and not a node",
            fix="the job comes back by itself; if it keeps happening, ask the cluster's support",
        )
    return None


def _clock_faults(findings: Sequence[NodeFindings], began: float, ended: float) -> dict[str, str]:
    """The nodes with a wrong clock; rank 0's, if most others differ from it to the same side."""
    first = findings[0].node
    off_s = {
        finding.node: finding.time - (began if finding.time < began else ended)
        for finding in findings
        if not began - CLOCK_TOLERANCE_S <= finding.time <= ended + CLOCK_TOLERANCE_S
    }
    agreeing = {finding.node for finding in findings} - set(off_s)
    one_side = len({off > 0 for off in off_s.values()}) == 1
    if one_side and len(off_s) > len(agreeing):
        return {first: f"its clock is {-median(off_s.values()):+.0f} s off that of most others"}
    return {node: f"its clock is {off:+.0f} s off that of {first}" for node, off in off_s.items()}


def bad_node(faults: Mapping[str, str]) -> BadNode:
    """The error that names nodes and their faults."""
    text = "; ".join(f"{node}: {fault}" for node, fault in sorted(faults.items()))
    error = BadNode(
        f"bad node: {text}",
        why="training there would fail later, or stand still",
        fix="mend it or take another node (a Slurm job is requeued without it); tell the support",
    )
    error.nodes = dict(faults)
    return error


def _not_come(text: str) -> RendezvousError:
    return RendezvousError(
        text,
        why="they died, or their nodes hang before they can say a word",
        fix="see their logs; a Slurm job comes back by itself",
    )


def _plain(error: MgptError | None) -> dict[str, Any]:
    if isinstance(error, BadNode):
        return {"nodes": error.nodes}
    if isinstance(error, RendezvousError):
        return {"absent": error.what}
    return {"storage": error.what} if error is not None else {}


def _error_of(plain: Mapping[str, Any]) -> MgptError | None:
    if plain.get("nodes"):
        return bad_node(plain["nodes"])
    if plain.get("absent"):
        return _not_come(plain["absent"])
    return StorageTrouble(plain["storage"]) if plain.get("storage") else None

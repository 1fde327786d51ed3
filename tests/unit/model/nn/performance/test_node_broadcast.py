"""One rank reads, all have the same numbers; what one of them cannot do fails on all."""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn

from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import StorageTrouble, WeightsError
from mgpt4_hpc.model.nn.performance.node_broadcast import LocalRunner, load_once_per_node
from mgpt4_hpc.retry import retry_storage
from mgpt4_hpc.train.stopping.stop import Interrupted
from tests.support.forked import in_processes


def norm_of(width: int) -> nn.Module:
    return nn.BatchNorm1d(width)  # parameters, and buffers of two types


def read(rank: int) -> nn.Module:
    module = norm_of(5)
    with torch.no_grad():
        for number, tensor in enumerate([*module.parameters(), *module.buffers()]):
            tensor.fill_(10 * rank + number + 1)
    return module


def plan(width: int) -> nn.Module:
    with torch.device("meta"):
        return norm_of(width)


def ranks_do(
    store: Path,
    hosts: list[str],
    load: Callable[[int], nn.Module],
    width: int = 5,
    *,
    plan: Callable[[int], nn.Module] = plan,
    run_locally: LocalRunner = lambda read: read(),
    catch: type[BaseException] | tuple[()] = (),
) -> list[object]:
    """What each rank holds in the end, with ranks on the named hosts."""

    def process(rank: int) -> Callable[[], object]:
        def run() -> object:
            torch.set_num_threads(1)
            size = len(hosts)
            dist.init_process_group(
                "gloo", store=dist.FileStore(str(store), size), rank=rank, world_size=size
            )
            socket.gethostname = lambda: hosts[rank]
            ranks = Ranks(rank, rank, size, size)
            try:
                module = load_once_per_node(
                    lambda: load(rank), lambda: plan(width), ranks, torch.device("cpu"), run_locally
                )
            except catch as error:
                return type(error).__name__
            return [t.flatten()[0].item() for t in [*module.parameters(), *module.buffers()]]

        return run

    return in_processes([process(rank) for rank in range(len(hosts))])


@pytest.mark.slow
def test_each_nodes_first_rank_reads_for_its_neighbours(tmp_path: Path) -> None:
    held = ranks_do(tmp_path / "store", ["a", "b", "a", "b"], read)
    assert held == [[1, 2, 3, 4, 5], [11, 12, 13, 14, 15]] * 2


class Tied(nn.Module):
    """Two names for one matrix, as in language models whose output matrix is the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.output = nn.Embedding(3, 2), nn.Linear(2, 3, bias=False)
        self.output.weight = self.embedding.weight


def test_what_is_one_parameter_stays_one(tmp_path: Path) -> None:
    def tied(rank: int) -> nn.Module:
        module = Tied()
        nn.init.constant_(module.embedding.weight, 7.0)
        return module

    def planned(width: int) -> nn.Module:
        with torch.device("meta"):
            return Tied()

    assert ranks_do(tmp_path / "store", ["a", "a"], tied, plan=planned) == [[7.0]] * 2


def _no_space(rank: int) -> nn.Module:
    raise WeightsError("a shard is missing", fix="copy it")


def test_a_failure_of_the_reader_is_everybodys(tmp_path: Path) -> None:
    found = ranks_do(tmp_path / "store", ["a", "a"], _no_space)
    assert [str(error) for error in found] == [
        str(WeightsError("a shard is missing", fix="copy it"))
    ] * 2


def _broken_off(rank: int) -> nn.Module:
    raise Interrupted


def test_a_reader_that_breaks_off_takes_all_along(tmp_path: Path) -> None:
    """One that went on alone would meet the others in the wrong collective."""
    found = ranks_do(tmp_path / "store", ["a", "b", "a"], _broken_off, catch=Interrupted)
    assert found == ["Interrupted"] * 3


def _stale(rank: int) -> nn.Module:
    raise WeightsError("no weights") from OSError(errno.ESTALE, "stale")


def test_storage_that_stumbles_is_that_for_all(tmp_path: Path) -> None:
    """An error's origin does not travel: a peer would take it for one that will repeat."""

    def run_locally(read: Callable[[], nn.Module]) -> nn.Module:
        return retry_storage(read, pauses_s=(0.0,))

    found = ranks_do(tmp_path / "store", ["a", "a"], _stale, run_locally=run_locally)
    assert [type(error) for error in found] == [StorageTrouble] * 2


def test_numbers_are_not_taken_for_others(tmp_path: Path) -> None:
    words = "rank 1 expects weight (6,) torch.float32 where rank 0 has read weight (5,)"
    found = ranks_do(tmp_path / "store", ["a", "a"], read, width=6)
    assert [isinstance(error, WeightsError) and words in str(error) for error in found] == [
        True
    ] * 2


@pytest.fixture(autouse=True)
def _no_group_yet() -> None:
    assert not dist.is_initialized()

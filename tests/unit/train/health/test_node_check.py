"""What makes a node unfit, and how ranks agree on it. Folders, stores and processes are real."""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.distributed import Ranks, rendezvous
from mgpt4_hpc.errors import BadNode, ConfigError, MgptError, RendezvousError, StorageTrouble
from mgpt4_hpc.train.device import choose_device
from mgpt4_hpc.train.health import node_check
from mgpt4_hpc.train.health.node_check import Findings, check_node
from mgpt4_hpc.train.health.node_consensus import NodeConsensus, judge
from mgpt4_hpc.train.stopping.stop import Interrupted, SignalStop
from tests.support.forked import in_processes

_SMALL = {"train.device": "cpu", "data.num_workers": 0}


@pytest.fixture
def config() -> RunConfig:
    return load_config("stage1-vicuna7b", overrides=_SMALL).config


def on_cuda(config: RunConfig) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"device": "cuda"})})


# -- one node ----------------------------------------------------------------------------------


def test_a_fit_node_has_no_faults_and_keeps_nothing_of_the_look(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    run = tmp_path / "run"
    run.mkdir()
    found = check_node(config, Ranks(), run, "n1")
    assert (found.node, found.faults, found.storage) == ("n1", (), "")
    assert not list(scratch.iterdir()) and not list(run.iterdir())


@pytest.mark.parametrize(
    ("settings", "ranks", "mib"),
    [
        ({"data.num_workers": 0}, 4, 0),
        ({"data.num_workers": 4, "train.micro_batch_size": 64}, 1, 73.5),
        ({"data.num_workers": 4, "train.micro_batch_size": 64}, 4, 294),
        (
            {
                "data.num_workers": 1,
                "train.micro_batch_size": 64,
                "train.eval_every_steps": 5,
                "data.val_fraction": 0.1,
            },
            1,
            36.75,
        ),
    ],
)
def test_shared_memory_is_measured_against_what_the_workers_hand_over(
    settings: dict[str, Any], ranks: int, mib: float, tmp_path: Path, monkeypatch: Any
) -> None:
    config = load_config("stage1-vicuna7b", overrides=settings).config
    here = Ranks(world_size=ranks, local_world_size=ranks)

    def faults(free_mib: float) -> list[str]:
        usage = SimpleNamespace(free=int(free_mib * 2**20))
        monkeypatch.setattr(node_check.shutil, "disk_usage", lambda folder: usage)
        return node_check.shared_memory_faults(config, here, tmp_path)

    assert faults(mib) == []
    if mib:
        (fault,) = faults(mib - 1)
        assert f"need {mib:.1f} MiB" in fault and "data.num_workers" in fault


@pytest.mark.parametrize(
    ("tmpdir", "told"),
    [("gone", "gone is no folder"), ("/proc", "TMPDIR /proc cannot be written")],
)
def test_a_broken_scratch_is_named(tmpdir: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", tmpdir)
    (fault,) = node_check.scratch_faults()
    assert told in fault


def test_a_full_scratch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(node_check, "SCRATCH_BYTES", 2**62)
    assert "MiB free" in node_check.scratch_faults()[0]


def test_a_gpu_that_is_not_there_is_a_fault_of_the_node(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (fault,) = node_check.gpu_faults(on_cuda(config), Ranks())
    assert "finds no GPU 0" in fault


@pytest.mark.parametrize(("named", "chosen"), [("2", 0), ("0,1,2,3", None)])
def test_a_rank_that_was_given_one_gpu_takes_it_whatever_its_number(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, named: str, chosen: int | None
) -> None:
    """But not the one that is left of a node's four."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    for name, result in (("is_available", True), ("device_count", 1), ("set_device", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *device, result=result: result)
    third = Ranks(rank=2, local_rank=2, world_size=4, local_world_size=4)
    if chosen is None:
        with pytest.raises(BadNode, match="finds no GPU 2"):
            choose_device(on_cuda(config), third)
    else:
        assert choose_device(on_cuda(config), third) == torch.device("cuda", chosen)


def test_a_torch_without_cuda_is_wrong_on_every_node(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(ConfigError, match="built without CUDA"):
        node_check.gpu_faults(on_cuda(config), Ranks())


@pytest.mark.parametrize("allotted", [True, False])
def test_auto_does_not_fall_back_to_the_cpu_where_a_gpu_was_allotted(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, allotted: bool
) -> None:
    auto = config.model_copy(update={"train": config.train.model_copy(update={"device": "auto"})})
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert bool(node_check.gpu_faults(auto, Ranks(), gpu_allotted=allotted)) is allotted


def test_a_gpu_that_multiplies_wrongly_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    assert node_check._compute_faults(cpu) == []
    honest = torch.Tensor.__matmul__

    def lies(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        product = honest(a, b)
        product[3, 5] += 1
        return product

    monkeypatch.setattr(torch.Tensor, "__matmul__", lies)
    assert "multiplies wrongly: 1 of 65536" in node_check._compute_faults(cpu)[0]


def test_cublas_is_told_to_be_deterministic_before_the_look_multiplies(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch remembers for ever what it found at the first product; then training would fail."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    for name, result in (("is_available", True), ("device_count", 1), ("set_device", None)):
        monkeypatch.setattr(torch.cuda, name, lambda *device, result=result: result)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(node_check, "_occupied_faults", lambda device: [])
    monkeypatch.setattr(
        node_check, "_compute_faults", lambda device: [os.environ["CUBLAS_WORKSPACE_CONFIG"]]
    )
    assert config.deterministic
    assert node_check.gpu_faults(on_cuda(config), Ranks()) == [":4096:8"]


def test_a_gpu_of_which_another_process_holds_memory_is_given_time_to_be_let_go() -> None:
    cpu = torch.device("cpu")
    answers = iter([(10 * 2**30, 80 * 2**30), (79 * 2**30, 80 * 2**30)])
    free = node_check._occupied_faults(cpu, memory=lambda _: next(answers), patience_s=0.01)
    assert free == []
    (fault,) = node_check._occupied_faults(
        cpu, memory=lambda _: (10 * 2**30, 80 * 2**30), patience_s=0.0
    )
    assert "10.0 of 80.0 GiB free" in fault


def test_too_little_memory_is_a_fault_and_an_unknown_amount_is_not(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 9 kB\nMemAvailable:   102400 kB\n")
    assert node_check.memory_faults(meminfo) == ["only 100 MiB of memory are left, 512 are needed"]
    meminfo.write_text("MemTotal: 9 kB\n")
    assert node_check.memory_faults(meminfo) == []
    assert node_check.memory_faults(tmp_path / "none") == []


def test_a_run_folder_that_cannot_be_written_is_told_and_a_full_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    gone = tmp_path / "gone"
    storage, clock = node_check.run_folder_faults(gone, 0, sleep=pauses.append)
    assert "cannot be written" in storage and "No such file" in storage and clock == []
    assert sum(pauses) >= 20
    back = node_check.run_folder_faults(gone, 0, sleep=lambda _: gone.mkdir())
    assert back == ("", []), "a mount that comes back is no fault"
    gone.rmdir()

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert node_check.run_folder_faults(tmp_path, 0) == ("", [])
    assert not list(tmp_path.iterdir())


def test_a_clock_that_is_off_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3600)
    _, (fault,) = node_check.run_folder_faults(tmp_path, 0)
    assert "+3600 s off" in fault


# -- all nodes ---------------------------------------------------------------------------------


def nodes_of(error: MgptError | None) -> dict[str, str]:
    assert isinstance(error, BadNode)
    return dict(error.nodes)


def test_each_node_is_named_once_with_all_its_faults() -> None:
    found = [
        Findings("a", time=5.0),
        Findings("b", ("x", "y"), time=5.0),
        Findings("b", ("y", "z"), time=5.0),
    ]
    assert nodes_of(judge(found)) == {"b": "x; y; z"}
    assert judge(found[:1]) is None


def test_a_folder_that_nobody_can_write_is_no_nodes_fault() -> None:
    cut_off = Findings("a", storage="cannot be written: Stale file handle", time=5.0)
    assert isinstance(judge([cut_off]), StorageTrouble)
    both = [cut_off, Findings("b", time=5.0)]
    assert nodes_of(judge(both)) == {"a": "cannot be written: Stale file handle"}


def test_a_clock_is_held_to_rank_0s() -> None:
    found = [Findings("a", time=1000.0), Findings("b", time=900.0), Findings("c", time=1095.0)]
    told = nodes_of(judge(found, began=1000.0, ended=1030.0))
    assert told == {
        "b": "its clock is -100 s off that of a",
        "c": "its clock is +65 s off that of a",
    }


def test_a_wrong_clock_of_rank_0_is_not_its_peers_fault() -> None:
    found = [Findings("a", time=1300.0), Findings("b", time=1000.0), Findings("c", time=1001.0)]
    assert nodes_of(judge(found, began=1300.0, ended=1301.0)) == {
        "a": "its clock is +300 s off that of most others"
    }
    # One against one: rank 0's counts, for someone must go.
    told = nodes_of(judge(found[:2], began=1300.0, ended=1301.0))
    assert told == {"b": "its clock is -300 s off that of a"}


def agree(
    findings: list[Findings | None], tmp_path: Path, *, late: int = 0, arrive_s: float = 20
) -> list[Any]:
    """Each rank's verdict and whether rank 0 had acted when it left; None never answers.

    Rank ``late``, if it is not 0, comes when an answer would be overdue.
    """
    token = f"nodes-{os.getpid()}-{time.time_ns()}"
    world = len(findings)
    timeout_s = 0.5 if late or None in findings else 20.0
    acted = tmp_path / "acted"
    alive: list[object] = []

    def rank_process(rank: int) -> Callable[[], Any]:
        def run() -> Any:
            ranks = Ranks(rank, rank, world, world)
            if late and rank == late:
                time.sleep(4 * timeout_s)
            store = rendezvous(ranks, "127.0.0.1", token, timeout_s=20)
            alive.append(store)  # as in a job, which goes on

            def check() -> Findings:
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


def test_all_ranks_hear_the_same_and_wait_for_rank_0(tmp_path: Path) -> None:
    now = time.time()
    fit, unfit = Findings("n0", time=now), Findings("n1", ("no GPU",), time=now)
    answers = agree([fit, unfit, fit], tmp_path)
    assert len({text for text, _ in answers}) == 1
    assert "bad node: n1: no GPU" in answers[0][0]
    assert all(acted for _, acted in answers)


def test_fit_nodes_go_on(tmp_path: Path) -> None:
    now = time.time()
    assert (
        agree([Findings("a", time=now), Findings("b", time=now)], tmp_path) == [(None, False)] * 2
    )


def test_a_rank_that_hangs_while_it_looks_makes_its_node_unfit(tmp_path: Path) -> None:
    answers = agree([Findings("n0", time=time.time()), None], tmp_path)
    assert "n1: rank 1 did not finish looking at it" in answers[0][0]


def test_a_node_that_is_slow_to_come_is_not_blamed(tmp_path: Path) -> None:
    now = time.time()
    findings: list[Findings | None] = [Findings("n0", time=now), Findings("n1", time=now)]
    assert agree(findings, tmp_path, late=1) == [(None, False)] * 2


def test_a_rank_that_never_comes_is_told_by_its_number(tmp_path: Path) -> None:
    now = time.time()
    alone = NodeConsensus(
        rendezvous(Ranks(0, 0, 3, 3), "127.0.0.1", f"absent-{os.getpid()}"),
        Ranks(0, 0, 3, 3),
        "n0",
        arrive_s=0.1,
    )
    error = alone.verdict(lambda: Findings("n0", time=now))
    assert isinstance(error, RendezvousError)
    assert "did not come within 0 s: 1, 2" in str(error)


def test_a_stop_signal_is_heard_while_ranks_wait_for_each_other() -> None:
    def waiting() -> str:
        stop = SignalStop((signal.SIGTERM,)).install()
        store = rendezvous(Ranks(0, 0, 2, 2), "127.0.0.1", f"stop-{os.getpid()}")
        consensus = NodeConsensus(store, Ranks(0, 0, 2, 2), "n0")
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)).start()
        try:
            with stop.interrupting():
                consensus.verdict(lambda: Findings("n0"))
        except Interrupted:
            return "interrupted"
        return "not interrupted"

    assert in_processes([waiting], timeout_s=20) == ["interrupted"]

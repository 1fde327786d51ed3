"""What makes a node unfit, and how ranks agree on it. Folders, stores and processes are real."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.train.health import node_check
from mgpt4_hpc.train.health.node_check import check_node
from tests.unit.train.attempts import on_cuda

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
        larger = SimpleNamespace(architecture=SimpleNamespace(image_size=448))
        monkeypatch.setattr(node_check, "open_bundle", lambda weights: larger)
        assert f"need {4 * mib:.1f} MiB" in faults(mib)[0], "at twice the side"


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

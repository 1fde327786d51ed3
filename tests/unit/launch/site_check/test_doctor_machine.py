"""Python, packages, GPUs: what is missing is named with the command that mends it."""

from __future__ import annotations

import importlib.metadata
import py_compile
from pathlib import Path
from types import SimpleNamespace

import pytest

from mgpt4_hpc.launch.site_check import doctor_machine
from mgpt4_hpc.launch.site_check.doctor_machine import gpu_findings, python_findings, torch_build
from mgpt4_hpc.launch.site_check.finding import Finding, Level


def told(findings: list[Finding], level: str) -> str:
    return "\n".join(f"{one.what} | {one.fix}" for one in findings if one.level is Level(level))


def fake_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, line: str, code: int = 0) -> None:
    folder.mkdir()
    (folder / "nvidia-smi").write_text(f"#!/bin/sh\necho '{line}'\nexit {code}\n")
    (folder / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_this_environment_is_complete() -> None:
    findings = python_findings(shared=False)
    assert told(findings, "fault") == ""
    assert f"torch {importlib.metadata.version('torch')}" in told(findings, "ok")


def test_a_package_is_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["click>=99", "no-such-package>=1", "also-not-there; extra == 'web'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda _: wanted)
    faults = told(python_findings(shared=False), "fault")
    assert "wanted is >=99 | pip install 'click>=99'" in faults
    assert "no-such-package is not installed" in faults
    assert "also-not-there" not in faults


def test_an_environment_that_nodes_do_not_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "not_shared", lambda _: "lies on overlay")
    assert "lies on overlay" in told(python_findings(shared=True), "warning")
    assert "overlay" not in told(python_findings(shared=False), "warning")


def test_an_environment_that_is_not_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "site-packages" / "torch" / "__init__.py"
    module.parent.mkdir(parents=True)
    module.touch()
    monkeypatch.setattr(doctor_machine, "find_spec", lambda _: SimpleNamespace(origin=str(module)))
    assert "byte code" not in told(python_findings(shared=False), "warning")
    monkeypatch.setattr("os.access", lambda *_: False)
    assert f"compileall -q -j 0 {tmp_path}/site-packages" in told(
        python_findings(shared=False), "warning"
    )
    py_compile.compile(str(module))
    assert "byte code" not in told(python_findings(shared=False), "warning")


def test_a_login_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    findings = gpu_findings({"NCCL_IB_DISABLE": "1"}, gpu_nodes=False)
    assert "no GPU on this machine" in told(findings, "note")
    assert "NCCL_IB_DISABLE=1" in told(findings, "note")
    fake_smi(tmp_path / "bin", monkeypatch, "No devices were found", code=6)
    assert "no GPU on this machine" in told(gpu_findings({}, gpu_nodes=False), "note")


def test_a_build_for_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor_machine, "torch_build", lambda: ("2.14.1+cpu", None))
    assert "would not use their GPUs" in told(gpu_findings({}, gpu_nodes=True), "fault")
    assert told(gpu_findings({}, gpu_nodes=False), "fault") == ""
    monkeypatch.setattr(doctor_machine, "torch_build", lambda: None)
    assert "torch is not installed" in told(gpu_findings({}, gpu_nodes=False), "fault")


def test_the_build_is_read_without_an_import() -> None:
    build = torch_build()
    assert build is not None and build[0] == importlib.metadata.version("torch")
    text = "cuda: Optional[str] = '12.8'\ngit_version = 'x'\n"
    assert doctor_machine._BUILD.search(text)[1] == "12.8"
    assert doctor_machine._BUILD.search("__version__ = 'x'\ncuda: X | None = None\n")[1] is None


@pytest.mark.parametrize(
    ("answer", "level", "expected"),
    [
        ('{"available": false, "cuda": "13.0"}', "fault", "sees no GPU though nvidia-smi does"),
        ('{"available": true, "nccl": "2.27", "nccl_available": true, "gpus": [{"name": "A100", '
         '"capability": [8, 0], "bf16": true, "computes": true}]}', "ok", "NCCL 2.27 is there"),
        ('{"available": true, "nccl": "2.27", "nccl_available": false, "gpus": [{"name": "V100", '
         '"capability": [7, 0], "bf16": false, "computes": true}]}', "note", "no bf16"),
    ],
)  # fmt: skip
def test_a_gpu_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str, level: str, expected: str
) -> None:
    fake_smi(tmp_path / "bin", monkeypatch, "NVIDIA A100-SXM4-40GB, 40960 MiB, 570.86")
    monkeypatch.setattr(doctor_machine, "torch_build", lambda: ("2.14.1", "13.0"))
    monkeypatch.setattr(doctor_machine, "_ASK_TORCH", f"print({answer!r})")
    findings = gpu_findings({}, gpu_nodes=True)
    assert "40960 MiB" in told(findings, "ok")
    assert expected in told(findings, level)


def test_torch_breaks_on_the_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_smi(tmp_path / "bin", monkeypatch, "NVIDIA A100, 40960 MiB, 470.1")
    monkeypatch.setattr(doctor_machine, "torch_build", lambda: ("2.14.1", "13.0"))
    monkeypatch.setattr(doctor_machine, "_ASK_TORCH", "raise RuntimeError('driver too old')")
    assert "driver too old" in told(gpu_findings({}, gpu_nodes=True), "fault")

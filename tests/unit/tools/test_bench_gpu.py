"""The one command for a GPU: every part is run once, and one that fails stops no other."""

from __future__ import annotations

import json
from pathlib import Path

import bench_gpu
import pytest
from click.testing import CliRunner, Result

FOUND = {
    "shape": "tiny", "stage": 1, "compile": True, "samples_per_s": 12.34, "step_s_median": 0.2,
    "step_s_p95": 0.25, "mfu": 0.5, "peak_memory_gib": 3.0, "baseline_samples_per_s": 6.0,
    "baseline_step_s_median": 0.4, "baseline_peak_memory_gib": 4.0, "ratio_to_baseline": 2.0,
    "date": "2026-11-26", "machine": "one GPU", "versions": {"torch": "2"}, "precision": "bf16",
}  # fmt: skip


def call(out: Path) -> Result:
    words = ["--out", str(out), "--device", "cpu", "--shape", "tiny", "--no-baseline"]
    return CliRunner().invoke(bench_gpu.main, [*words, "--rounds", "1", "--steps", "1"])


@pytest.mark.slow
def test_what_is_missing_is_measured(tmp_path: Path) -> None:
    for name in ("tiny-stage1", "tiny-stage1-compile"):
        (tmp_path / f"{name}.json").write_text(json.dumps(FOUND))
    other = {**FOUND, "machine": "another GPU"}
    (tmp_path / "tiny-stage2-compile.json").write_text(json.dumps(other))
    done = call(tmp_path)
    assert done.exit_code == 0, done.output
    assert done.stderr == "tiny-stage2 ...\n"
    measured = json.loads((tmp_path / "tiny-stage2.json").read_text())
    assert measured["stage"] == 2 and measured["samples_per_s"] > 0
    assert not list(tmp_path.glob("*.log"))
    assert "one GPU, torch 2, bf16" in done.stdout
    assert "| tiny, 1 | `compile` | 12.3 | 200, 250 ms | 50% | 3.0 GiB |" in done.stdout
    assert "| 6/s, 400 ms | 4.0 GiB | **2.00** |" in done.stdout
    assert done.stdout.count("| tiny, ") == 4
    # One table for each machine that the figures come from.
    assert done.stdout.count("| model, stage |") == 3 and "another GPU, torch 2" in done.stdout


def test_one_that_fails_leaves_its_log_and_stops_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [
        bench_gpu.Part("bad", ("-c", "print('half of it'); raise SystemExit('out of memory')")),
        bench_gpu.Part("good", ("-c", "print('whole')"), ".txt"),
    ]
    monkeypatch.setattr(bench_gpu, "plan", lambda *_, **__: parts)
    done = call(tmp_path)
    assert done.exit_code == 1
    assert "bad failed" in done.output
    assert (tmp_path / "bad.log").read_text() == "out of memory\nhalf of it\n"
    assert not (tmp_path / "bad.json").exists()
    assert (tmp_path / "good.txt").read_text() == "whole\n"


def test_the_plan_names_every_part_once() -> None:
    parts = list(
        bench_gpu.plan(["vicuna7b", "llama2-7b"], "cuda", Path("x"), baseline=True, options=())
    )
    names = [part.name for part in parts]
    assert len(set(names)) == len(names) == 1 + 2 * 2 * 2 + 1
    assert names[0] == "gpu-tests" and names[-1] == "startup"

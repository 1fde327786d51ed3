"""Tests of ``model/weight_files/one_pass.py``."""

from __future__ import annotations

import hashlib
import itertools
import math
import resource
from pathlib import Path

import pytest
import torch

from mgpt4_hpc.model.bundle.writer import write_bundle
from mgpt4_hpc.model.weight_files import one_pass
from mgpt4_hpc.model.weight_files.headers import TensorInfo
from mgpt4_hpc.model.weight_files.one_pass import Output, Reading, is_finite, lay_out, run_all


def test_each_byte_is_read_once(sources, toy: Path, tmp_path: Path, monkeypatch) -> None:
    """Counted where the files are read; headers and samples, which are small, come on top."""
    read: dict[str, int] = {}
    real = one_pass._fill

    def counting(file, view, path) -> None:
        read[path.name] = read.get(path.name, 0) + len(view)
        real(file, view, path)

    monkeypatch.setattr(one_pass, "_fill", counting)
    told: list[tuple[int, int]] = []
    write_bundle(tmp_path / "bundle", sources, on_progress=lambda *counts: told.append(counts))
    files = [toy / "eva_vit_g.pth", toy / "blip2_pretrained_flant5xxl.pth",
             *(toy / "llm" / n for n in ("model.safetensors", "config.json", "tokenizer.model",
                                         "tokenizer_config.json"))]  # fmt: skip
    assert read == {path.name: path.stat().st_size for path in files}
    assert told[-1] == (sum(read.values()),) * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_finite_is_what_torch_says(dtype: torch.dtype) -> None:
    name = one_pass.tensor_info(torch.zeros(1, dtype=dtype)).dtype
    good = torch.tensor([0.0, -1.5, torch.finfo(dtype).max, -torch.finfo(dtype).tiny], dtype=dtype)
    # A few numbers are looked at without NumPy.
    for value, times in itertools.product((None, math.nan, math.inf, -math.inf), (5, 50_000)):
        tensor = good.repeat(times).clone()
        if value is not None:
            tensor[13] = value
        data = tensor.view(torch.uint8).numpy().tobytes()
        assert is_finite(data, name) == bool(torch.isfinite(tensor).all())
    assert is_finite(b"\xff" * 8, "I64") and is_finite(b"", name)


def test_tensors_over_several_blocks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(one_pass, "BLOCK_BYTES", 64)
    data = torch.randn(1000)
    path = tmp_path / "x.bin"
    path.write_bytes(b"head" + data.numpy().tobytes() + b"tail")
    info = TensorInfo("F32", (1000,), 4000, path, 4)
    output = Output(tmp_path / "copy")
    reading = Reading(
        path, {"a": info, "inside": TensorInfo("F32", (2,), 8, path, 8)}, {"a": output}
    )
    run_all([[reading]], finite=True)
    output.close()
    assert (tmp_path / "copy").read_bytes() == data.numpy().tobytes()
    assert reading.blake2b == hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    assert not reading.not_finite


def test_large_types_come_first(tmp_path: Path) -> None:
    def made(dtype: str, count: int, start: int) -> TensorInfo:
        return TensorInfo(dtype, (count,), count * one_pass_item[dtype], tmp_path, start)

    from mgpt4_hpc.model.weight_files.headers import ITEM_BYTES as one_pass_item  # noqa: N811

    layout = lay_out({"odd": made("F16", 99, 0), "more": made("F16", 1, 300),
                      "wide": made("F64", 2, 500), "byte": made("U8", 3, 600)})  # fmt: skip
    assert layout.before == ["wide"] and layout.copied == ["odd", "more"]
    assert layout.after == ["byte"] and len(layout.header) % 8 == 0


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        file.truncate(300 * 1024 * 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    info = TensorInfo("F16", (100_000_000,), 200_000_000, path, 64)
    run_all([[Reading(path, {"a": info})]], finite=True)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 60 * 1024

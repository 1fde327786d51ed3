"""MFU from sizes and a clock; the device is only asked for its name (no GPU exists here)."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mgpt4_hpc.model.architecture import EVA_G_QFORMER
from mgpt4_hpc.train.mfu import peak_flops_per_s, utilisation

VICUNA_7B = {
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "vocab_size": 32000,
}


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA H100 80GB HBM3", 989.5),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA A10", 125.0),
        ("NVIDIA A40", 149.7),
        ("NVIDIA GH200 480GB", 989.5),
        ("NVIDIA RTX A4000", None),
        ("NVIDIA RTX A3000 Laptop GPU", None),
        ("NVIDIA A10G", 70.0),
        ("Tesla V100S-PCIE-32GB", 130.0),
        ("Tesla V100-SXM2-32GB", 125.0),
        ("Some other card", None),
    ],
)
def test_peaks_are_found_by_name(name: str, tflops: float | None) -> None:
    assert peak_flops_per_s(name, "bf16") == (None if tflops is None else tflops * 1e12)
    assert peak_flops_per_s(name, "fp32") is None


class _Batch(SimpleNamespace):
    def __len__(self) -> int:
        return int(self.attention_mask_BT.shape[0])


def batch(samples: int, tokens: int, padding: int) -> Any:
    mask = torch.ones(samples, tokens + padding, dtype=torch.bool)
    mask[:, tokens:] = False
    return _Batch(
        attention_mask_BT=mask,
        num_answer_tokens=samples * 16,
        features_NIQ=None,
        images_NCHW=torch.empty(samples, 0, 0, 0),
    )


def test_the_published_stage_1_step_is_where_the_measurement_put_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    mfu = utilisation(EVA_G_QFORMER, VICUNA_7B, torch.device("cuda", 0), "bf16")
    # docs/performance.md: 0.260 s at batch 64 were 56% of a measured peak of 785 TFLOP/s.
    found = mfu([batch(64, 48, 0)], 0.260)
    assert found == pytest.approx(0.56 * 785 / 989.5, rel=0.1)
    assert mfu([batch(64, 48, 16)], 0.260) == pytest.approx(found), "padding is not needed"
    assert mfu([batch(32, 48, 0)] * 2, 0.260) == pytest.approx(found), "nor is the slicing"


def test_a_cpu_has_no_known_peak() -> None:
    assert utilisation(EVA_G_QFORMER, VICUNA_7B, torch.device("cpu"), "bf16")([], 1.0) is None

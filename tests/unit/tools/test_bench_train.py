"""The benchmark measures what it says: equal losses on both sides, true counts of operations."""

from __future__ import annotations

import json
from pathlib import Path

import bench_train
import pytest
import torch
from click.testing import CliRunner

from tests.support.subjects import tiny

KEYS = {
    "samples_per_s",
    "step_s_median",
    "mfu",
    "peak_memory_gib",
    "baseline_samples_per_s",
    "ratio_to_baseline",
    "parts_s",
}


def invoke(*arguments: str) -> dict:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    try:
        result = CliRunner().invoke(bench_train.main, [*arguments, "--threads", "1", "--json"])
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.mark.parametrize("ignored", [("--stage", "2"), ("--batch-size", "8")])
def test_what_a_config_says_is_not_asked_for_otherwise(
    ignored: tuple[str, str], tmp_path: Path
) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("stage: 1\n")
    result = CliRunner().invoke(bench_train.main, ["--config", str(config), *ignored])
    assert result.exit_code == 2 and ignored[0] in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["1", "2"])
def test_the_report_has_what_it_promises(stage: str) -> None:
    report = invoke(
        *("--shape", "tiny", "--stage", stage, "--synthetic", "--baseline", "reference"),
        *("--rounds", "1", "--steps", "2", "--warmup", "1"),
    )
    assert report.keys() >= KEYS
    assert report["flop_efficiency"] == 1.0 and 0 < report["mfu"] < 1
    assert report["parts_s"].keys() >= {"vision", "qformer", "llm_forward", "optimizer"}
    around = {"data_wait", "all_reduce", "logging", "checkpoint_stall"}
    assert report["parts_s"].keys() >= around
    # One process has nobody to reduce with; everything else costs something.
    assert {part for part in around if not report["parts_s"][part]} == {"all_reduce"}
    assert report["step_s_p95"] >= report["step_s_median"] > 0
    assert report["machine"] and report["versions"]["torch"]


@pytest.mark.slow
def test_recomputing_costs_flops_that_nobody_needed() -> None:
    report = invoke(
        *("--shape", "tiny-patches", "--activation-checkpointing", "1.0", "--cached-features"),
        *("--rounds", "1", "--steps", "1", "--warmup", "1"),
    )
    assert 0.5 < report["flop_efficiency"] < 0.8


@pytest.mark.parametrize("shape", ["tiny", "tiny-patches"])
@pytest.mark.parametrize("stage", [1, 2])
def test_both_sides_compute_the_same_loss_and_gradient(shape: str, stage: int) -> None:
    from bench.baseline import ReferenceStep, as_the_original, to_samples

    from mgpt4_hpc.train.step import forward_loss

    subject, batches = tiny(shape, stage)
    weight = subject.model.llama_proj.weight
    for batch in batches:
        ours = forward_loss(subject.model, batch, torch.device("cpu")) / batch.num_answer_tokens
        (gradient,) = torch.autograd.grad(ours, weight)
        with as_the_original(subject.model, half=False):
            step = ReferenceStep(subject.model, subject.train, half=False)
            theirs = step.loss(to_samples(batch))
            (wanted,) = torch.autograd.grad(theirs, weight)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            gradient, wanted, rtol=1e-3, atol=1e-3 * wanted.abs().max().item()
        )


def test_on_a_cpu_the_original_computes_in_float32_whatever_we_compute_in() -> None:
    from bench.baseline import ReferenceStep, as_the_original, to_samples

    from mgpt4_hpc.train.step import forward_loss

    subject, (batch, _) = tiny("tiny", 2, precision="bf16")
    ours = forward_loss(subject.model, batch, torch.device("cpu")) / batch.num_answer_tokens
    with as_the_original(subject.model, half=False):
        types = {p.dtype for p in subject.model.parameters()}
        step = ReferenceStep(subject.model, subject.train, half=False)
        theirs = step.loss(to_samples(batch))
    assert types == {torch.float32}
    assert {p.dtype for p in subject.model.language_model.parameters()} == {torch.bfloat16}
    torch.testing.assert_close(ours, theirs, rtol=5e-3, atol=0)


def test_the_model_is_its_old_self_after_the_race() -> None:
    from bench.baseline import as_the_original

    from mgpt4_hpc.model.nn.language import runs_packed
    from mgpt4_hpc.train.step import forward_loss

    subject, (batch, _) = tiny("tiny", 2, activation_checkpointing=1.0)
    before = forward_loss(subject.model, batch, torch.device("cpu"))
    layer = subject.model.language_model.model.layers[0]
    assert "forward" in layer.__dict__
    with as_the_original(subject.model, half=False):
        assert not runs_packed(subject.model.language_model) and "forward" not in layer.__dict__
        assert not subject.model.vision.blocks[0].attn.fused_attn
    assert "forward" in layer.__dict__ and subject.model.vision.blocks[0].attn.fused_attn
    assert torch.equal(forward_loss(subject.model, batch, torch.device("cpu")), before)


def test_synthetic_batches_depend_on_their_number_alone() -> None:
    _, first = tiny("tiny", 2)
    _, again = tiny("tiny", 2)
    assert all(
        torch.equal(a.input_ids_BT, b.input_ids_BT) for a, b in zip(first, again, strict=True)
    )
    assert not torch.equal(first[0].images_NCHW, first[1].images_NCHW)


def test_unknown_shapes_are_answered_with_the_known_ones() -> None:
    result = CliRunner().invoke(bench_train.main, ["--shape", "vicuna99b"])
    assert result.exit_code == 2 and "vicuna7b" in result.output

"""A training step on a GPU: right in 16 bits, never waiting, repeatable, and safe to save from."""

from __future__ import annotations

import pytest
import torch

from mgpt4_hpc.checkpoint.saver import AsyncSaver
from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.model.nn.minigpt4 import ModelOptions, build_model
from mgpt4_hpc.model.nn.performance.compile import compile_layers
from mgpt4_hpc.model.nn.preprocess import normalise
from mgpt4_hpc.train.optimizer import load_optimizer_tensors, optimizer_tensors
from mgpt4_hpc.train.step import forward_loss
from tests.gpu.steps import deterministic, make_batch, make_model, make_step, run
from tests.support.reference import FOLDERS, load_reference


def loss_and_gradient(model, batch) -> tuple[float, torch.Tensor]:
    loss = model.answer_loss(**batch) / (batch["labels_BT"] != -100).sum()
    (gradient,) = torch.autograd.grad(loss, model.llama_proj.weight)
    return loss.item(), gradient.float().cpu()


@pytest.mark.parametrize("folder", FOLDERS)
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
@pytest.mark.parametrize("attention", ["packed", "sdpa"])
def test_the_original_s_loss_and_gradient(cuda, folder, stage, attention) -> None:
    reference = load_reference(folder)
    batch = reference.batch(stage)
    batch["pixels_NCHW"] = batch["pixels_NCHW"].to(cuda)
    wanted_loss = reference.expected[f"{stage}.loss"]
    wanted = reference.tensors[f"{stage}.grad.llama_proj.weight"]
    limits = {"fp32": (1e-5, 1e-3), "bf16": (5e-3, 5e-2), "fp16": (1e-3, 1e-2)}
    for precision, (of_loss, of_gradient) in limits.items():
        model = build_model(
            reference.bundle, ModelOptions(precision=precision, attention=attention), device=cuda
        )
        loss, gradient = loss_and_gradient(model, batch)
        assert loss == pytest.approx(wanted_loss, rel=of_loss), precision
        distance = (gradient - wanted).norm() / wanted.norm()
        assert distance < of_gradient, (precision, distance)


def test_attention_runs_in_a_flash_kernel(cuda) -> None:
    step = make_step(make_model())
    run(step, make_batch(0), 0)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run(step, make_batch(1), 1)
        torch.cuda.synchronize()
    kernels = {event.key for event in profile.key_averages()}
    flash = {name for name in kernels if "flash" in name.lower() or "fmha" in name.lower()}
    assert any("bwd" in name for name in flash), kernels
    assert any("fwd" in name for name in flash), kernels


@pytest.mark.parametrize("replayed", [False, True])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_never_waits_for_the_gpu(cuda, precision, replayed) -> None:
    model = make_model(precision)
    model.replay_towers(replayed)
    step = make_step(model, fp16=precision == "fp16", max_grad_norm=1.0)
    with deterministic():
        for number in range(3):
            run(step, make_batch(number), number)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for number in range(3, 6):
                result = run(step, make_batch(number), number)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert result.loss_sum.isfinite()


def test_fp16_skips_an_overflow_without_asking(cuda) -> None:
    model = make_model("fp16")
    step = make_step(model, fp16=True)
    run(step, make_batch(0), 0)
    before = {name: p.detach().clone() for name, p in model.llama_proj.named_parameters()}
    moments = optimizer_tensors(step.optimizer, model.llama_proj)
    moments = {name: tensor.clone() for name, tensor in moments.items()}
    step.loss_scale.fill_(2.0**40)  # no gradient survives that in fp16
    run(step, make_batch(1), 1)
    assert step.overflow_steps.item() == 1.0
    assert step.loss_scale.item() == 2.0**39
    for name, parameter in model.llama_proj.named_parameters():
        assert torch.equal(parameter, before[name]), name
    for name, tensor in optimizer_tensors(step.optimizer, model.llama_proj).items():
        assert torch.equal(tensor, moments[name]), name
    step.loss_scale.fill_(2.0**10)
    run(step, make_batch(2), 2)
    assert step.overflow_steps.item() == 1.0 and step.nonfinite_steps.item() == 0.0
    assert not torch.equal(model.llama_proj.weight, before["weight"])


def snapshot(step) -> dict[str, dict[str, torch.Tensor]]:
    projector = {name: p.detach() for name, p in step.model.llama_proj.named_parameters()}
    saved = {**optimizer_tensors(step.optimizer, step.model.llama_proj), **step.scaler_tensors()}
    return {"projector": projector, "optimizer": saved}


def test_a_save_holds_the_step_it_was_asked_after_while_training_goes_on(cuda, tmp_path) -> None:
    step = make_step(make_model())
    run(step, make_batch(0), 0)
    saver = AsyncSaver(CheckpointStore(tmp_path))
    for number in range(1, 4):
        run(step, make_batch(number), number)
    wanted = {
        part: {name: tensor.clone() for name, tensor in tensors.items()}
        for part, tensors in snapshot(step).items()
    }
    assert saver.save(4, snapshot(step), {})
    for number in range(4, 8):
        run(step, make_batch(number), number)
    assert saver.close(60) and saver.failures == []
    loaded = CheckpointStore(tmp_path).load_newest()
    for part, tensors in wanted.items():
        for name, tensor in tensors.items():
            assert torch.equal(loaded.files[part][name], tensor.cpu()), (part, name)


def test_long_sequences_have_one_gradient(cuda) -> None:
    """Flash attention's backward adds up in any order unless it is told not to."""
    model = make_model()
    step = make_step(model)
    batch = make_batch(0, 8, longest=900)
    with deterministic():
        gradients = []
        for _ in range(6):
            model.zero_grad()
            step._backward(batch, batch.num_answer_tokens)
            gradients.append(model.llama_proj.weight.grad.clone())
    assert all(torch.equal(gradients[0], gradient) for gradient in gradients)


def test_replayed_towers_compute_the_same_bits(cuda) -> None:
    model = make_model()
    images = [make_batch(number).images_NCHW for number in range(6)]
    smaller = make_batch(6, 2).images_NCHW
    with deterministic():
        plain = [model.encode_images(normalise(image, cuda)) for image in images]
        model.replay_towers()
        replayed = [model.encode_images(normalise(image, cuda)) for image in images]
        assert len(model._replayed) == 1
        assert all(torch.equal(a, b) for a, b in zip(plain, replayed, strict=True))
        model.encode_images(normalise(smaller, cuda))
        assert len(model._replayed) == 1, "a last, smaller batch is not worth a graph"
        model.to(torch.device("cpu")).to(cuda)
        assert len(model._replayed) == 0, "the weights are elsewhere"
        assert torch.equal(model.encode_images(normalise(images[0], cuda)), plain[0])


def test_resuming_is_bit_identical(cuda) -> None:
    with deterministic():
        straight = make_step(make_model())
        for number in range(6):
            run(straight, make_batch(number), number)
        early = make_step(make_model())
        for number in range(3):
            run(early, make_batch(number), number)
        late = make_step(make_model())
        late.model.replay_towers()
        saved = snapshot(early)
        late.model.llama_proj.load_state_dict(saved["projector"])
        load_optimizer_tensors(late.optimizer, late.model.llama_proj, saved["optimizer"])
        late.load_scaler_tensors(saved["optimizer"])
        for number in range(3, 6):
            run(late, make_batch(number), number)
    for name, parameter in straight.model.llama_proj.named_parameters():
        assert torch.equal(parameter, late.model.llama_proj.get_parameter(name)), name


def test_compiled_layers_compute_the_same(cuda) -> None:
    plain, compiled = make_model(), make_model()
    compiled.load_state_dict(plain.state_dict())
    compile_layers(compiled)
    for number in range(3):  # another number of tokens each time
        batch = make_batch(number)
        results = []
        for model in (plain, compiled):
            loss = forward_loss(model, batch, cuda) / batch.num_answer_tokens
            (gradient,) = torch.autograd.grad(loss, model.llama_proj.weight)
            results.append((loss, gradient))
        (loss, gradient), (other_loss, other) = results
        torch.testing.assert_close(other_loss, loss, rtol=5e-3, atol=0)
        assert (other - gradient).norm() / gradient.norm() < 3e-2

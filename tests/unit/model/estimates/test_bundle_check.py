"""`check_bundle` names what is wrong, all of it, without building a model."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import EVA_G_PATCHES, EVA_G_QFORMER
from mgpt4_hpc.model.bundle.writer import Sources, write_bundle
from mgpt4_hpc.model.conversion.variants import projector_faults
from mgpt4_hpc.model.estimates import memory
from mgpt4_hpc.model.estimates.bundle_check import check_bundle
from mgpt4_hpc.model.llm_files.check import check_llm
from mgpt4_hpc.model.llm_files.folder import companion_files, llm_files
from mgpt4_hpc.model.tower_shapes import connector_shapes, projector_shapes, vision_shapes
from mgpt4_hpc.model.weight_files.headers import read_header
from tests.support.planned_model import plan_model

LLAMA_7B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "vocab_size": 32000,
}
LLAMA_13B = LLAMA_7B | {
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
}


@pytest.fixture
def bundle(vicuna, tmp_path: Path) -> Path:
    path = vicuna.path
    sources = Sources(
        vit=path / "eva_vit_g.pth",
        qformer=path / "blip2_pretrained_flant5xxl.pth",
        llm=path / "llm",
        projector=path / "pretrained_minigpt4.pth",
        architecture=vicuna.architecture,
    )
    write_bundle(tmp_path / "bundle", sources, llm="copy")
    return tmp_path / "bundle"


def test_a_good_bundle(bundle: Path, reference) -> None:
    found = check_bundle(bundle, full=True)
    assert found.ok and found.facts["projector"] == [64, 48]
    assert found.facts["dtypes"]["vision.safetensors"] == ["F32"]
    assert {row["stage"] for row in found.memory} == {"stage1", "stage2"}
    json.dumps(found.to_dict())
    original = check_bundle(reference.path, architecture=reference.architecture)
    assert original.ok, original.faults


def test_every_changed_file_is_named(bundle: Path) -> None:
    for name in ("vision.safetensors", "llm/tokenizer.model"):
        content = bytearray((bundle / name).read_bytes())
        content[len(content) // 2] ^= 4
        (bundle / name).write_bytes(content)
    (bundle / "projector.safetensors").unlink()
    faults = "\n".join(check_bundle(bundle).faults)
    for name in ("vision.safetensors has changed", "tokenizer.model has changed"):
        assert name in faults
    assert "projector.safetensors cannot be read" in faults


def test_llm_of_another_width(bundle: Path) -> None:
    path = bundle / "llm" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"hidden_size": 4096}))
    faults = "\n".join(check_bundle(bundle).faults)
    assert (
        "the projector is for a model of width 64, the LLM is the 7B model (width 4096)" in faults
    )
    assert "embed_tokens.weight is 512 x 64, by config.json it is 512 x 4096" in faults


def test_the_likely_variant_is_named() -> None:
    assert projector_faults(EVA_G_QFORMER, 4096, (5120, 768)) == [
        "the projector is for the 13B model (width 5120), the LLM is the 7B model (width 4096)"
    ]
    (fault,) = projector_faults(EVA_G_QFORMER, 4096, (4096, 5632))
    assert "takes the variant without Q-Former (Llama 2) (width 5632)" in fault
    assert not projector_faults(EVA_G_PATCHES, 4096, (4096, 5632))


def test_missing_shard_and_lfs_pointer_in_the_llm(bundle: Path) -> None:
    llm = bundle / "llm"
    tensors = load_file(llm / "model.safetensors")
    (llm / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {}
    for number, part in enumerate((names[:8], names[8:]), start=1):
        name = f"model-0000{number}-of-00002.safetensors"
        save_file({k: tensors[k] for k in part}, llm / name)
        weight_map |= dict.fromkeys(part, name)
    index = llm / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (llm / "model-00002-of-00002.safetensors").unlink()
    (llm / "tokenizer.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    faults = "\n".join(check_bundle(bundle).faults)
    assert "lacks 1 of 2 weight files: ['model-00002-of-00002.safetensors']" in faults
    assert "git-lfs pointer" in faults


def test_weights_that_are_there_twice_count_once(bundle: Path) -> None:
    llm = bundle / "llm"
    before = check_llm(llm).num_parameters
    tensors = load_file(llm / "model.safetensors")
    save_file(
        {f"of_another_kind.{k}": t for k, t in tensors.items()}, llm / "consolidated.safetensors"
    )
    assert check_llm(llm).num_parameters == before
    (llm / "model.safetensors").rename(llm / "shard-1.safetensors")
    index = llm / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": dict.fromkeys(tensors, "shard-1.safetensors")})
    )
    assert check_llm(llm).num_parameters == before
    names = {path.name for path in [*llm_files(llm), *companion_files(llm)]}
    assert {"shard-1.safetensors", index.name} <= names and "consolidated.safetensors" not in names
    for text in ("{", "[]", '{"weight_map": 1}'):
        index.write_text(text)
        assert "cannot read" in "".join(check_llm(llm).faults)
    index.unlink()
    (llm / "shard-1.safetensors").unlink()
    assert check_llm(llm).num_parameters == before  # as it is all that there is


def test_truncated_safetensors_is_seen_in_its_header(bundle: Path) -> None:
    path = bundle / "llm" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(WeightsError, match="is truncated"):
        read_header(path)
    path.write_bytes(b"\xff" * 100)
    with pytest.raises(WeightsError, match="not a safetensors file"):
        read_header(path)


def test_the_check_takes_seconds_and_builds_nothing(bundle: Path) -> None:
    code = (
        "import sys; from mgpt4_hpc.model.estimates.bundle_check import check_bundle;"
        f"assert check_bundle({str(bundle)!r}).ok; assert 'timm' not in sys.modules"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[4])
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 20


# --- full size, on the meta device -----------------------------------------------------------


@pytest.mark.parametrize(
    ("arch", "config", "trainable"),
    [
        (EVA_G_QFORMER, LLAMA_7B, 3_149_824),
        (EVA_G_QFORMER, LLAMA_13B, 3_937_280),
        (EVA_G_PATCHES, LLAMA_7B, 23_072_768),
    ],
    ids=["vicuna-7b", "vicuna-13b", "llama2-7b"],
)
def test_full_size_models_are_planned_without_memory(arch, config: dict, trainable: int) -> None:
    start = time.perf_counter()
    model = plan_model(arch.with_llm_dim(config["hidden_size"]), config)
    assert time.perf_counter() - start < 10
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == trainable
    assert sum(p.numel() for p in model.vision.parameters()) == 985_894_528
    for module, shapes in (
        (model.vision, vision_shapes(arch)),
        (model.connector, connector_shapes(arch)),
        (model.llama_proj, projector_shapes(arch, config["hidden_size"])),
    ):
        assert {k: tuple(t.shape) for k, t in module.state_dict().items()} == shapes
    llm_parameters = sum(p.numel() for p in model.language_model.parameters())
    llm = memory.LlmSizes(config, llm_parameters)
    estimate = memory.estimate_memory(model.architecture, llm, micro_batch_size=12, text_tokens=191)
    assert 14 < estimate.total < 60
    smaller = memory.estimate_memory(
        model.architecture,
        llm,
        micro_batch_size=12,
        text_tokens=191,
        activation_checkpointing=True,
    )
    assert smaller.weights == estimate.weights and smaller.activations < estimate.activations / 5
    sharded = memory.estimate_memory(
        model.architecture,
        llm,
        micro_batch_size=12,
        text_tokens=191,
        sharded_over=4,
    )
    layers = list(model.language_model.model.layers.parameters())
    in_layers = 2 * sum(p.numel() for p in layers) / memory.GIB
    saved = in_layers * (3 / 4 - 2 / config["num_hidden_layers"])
    assert estimate.weights - sharded.weights == pytest.approx(saved, rel=1e-4)


def test_unknown_later_vicuna_is_hinted_at(bundle: Path, monkeypatch) -> None:
    from mgpt4_hpc.model.estimates import bundle_check

    llm = bundle_check.check_llm(bundle / "llm")
    llm.width, llm.vocab_size = 4096, 32000
    monkeypatch.setattr(bundle_check, "check_llm", lambda _path, **_options: llm)
    assert any("32,001" in note for note in check_bundle(bundle).notes)


def test_no_llm_folder(bundle: Path) -> None:
    shutil.rmtree(bundle / "llm")
    found = check_bundle(bundle)
    assert not found.ok and any("no language model folder" in fault for fault in found.faults)


def test_activations_are_those_that_autograd_keeps() -> None:
    """Count what one forward pass saves, and compare with the estimate."""
    import torch

    from mgpt4_hpc.model.nn.language import build_language_model, trunk

    config = LLAMA_7B | {"hidden_size": 128, "intermediate_size": 344, "num_hidden_layers": 4}
    config |= {"num_attention_heads": 4, "vocab_size": 64}
    model = build_language_model(config, dtype=torch.bfloat16, attention="sdpa")
    frozen = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in frozen:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    embeds = torch.randn(2, 64, 128, dtype=torch.bfloat16, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = trunk(model)(inputs_embeds=embeds, use_cache=False)[0]
    assert output.requires_grad
    estimated = 2 * 64 * 4 * memory._layer_bytes_per_token(config, 128, 2)
    assert sum(saved.values()) == pytest.approx(estimated, rel=0.2)

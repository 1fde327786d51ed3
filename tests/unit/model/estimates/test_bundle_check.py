"""`check_bundle` names what is wrong, all of it, without building a model."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from mgpt4_hpc.model.architecture import EVA_G_PATCHES, EVA_G_QFORMER
from mgpt4_hpc.model.conversion.variants import projector_faults
from mgpt4_hpc.model.estimates.bundle_check import check_bundle


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_check_takes_seconds_and_builds_nothing(bundle: Path) -> None:
    code = (
        "import sys; from mgpt4_hpc.model.estimates.bundle_check import check_bundle;"
        f"assert check_bundle({str(bundle)!r}).ok; assert 'timm' not in sys.modules"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[4])
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 20


# --- full size, on the meta device -----------------------------------------------------------


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

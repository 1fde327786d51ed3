"""LoRA leaves the house merged, or as an adapter; both compute what training computed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click import UsageError

from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.generation.chat_model import ChatModel, find_source
from mgpt4_hpc.model.nn.lora import lora_parameters
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run
from tests.unit.model.huggingface.conftest import Exported, weights

pytest.importorskip("peft")

LORA = {"rank": 4, "alpha": 8.0, "target_modules": ["q_proj", "v_proj"]}
IDS = torch.arange(5, 45)[None]


@pytest.fixture(scope="module")
def run(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint whose LoRA is random."""
    from mgpt4_hpc.model.bundle.bundle import open_bundle
    from mgpt4_hpc.model.nn.lora import add_lora
    from mgpt4_hpc.model.nn.minigpt4 import build_model

    world = TinyWorld(exported.weights.parent)
    path = tmp_path_factory.mktemp("runs") / "adapted"
    trained = make_trained_run(world, path, seed=3, step=4)
    model = build_model(open_bundle(exported.weights)).language_model
    parameters = add_lora(model, rank=4, alpha=8.0, target_modules=("q_proj", "v_proj"), seed=1)
    torch.manual_seed(2)
    lora = {name: torch.randn_like(p) * 0.05 for name, p in parameters.items()}
    projector = {
        f"llama_proj.{k}": t
        for k, t in ChatModel(find_source(path)).model.llama_proj.state_dict().items()
    }
    files = {"projector": projector, "lora": lora}
    CheckpointStore(trained.checkpoints).commit(12, files, {"samples_seen": 12, "lora": LORA})
    return path


@pytest.fixture(scope="module")
def expected(run: Path) -> torch.Tensor:
    model = ChatModel(find_source(run)).model.language_model
    assert lora_parameters(model)
    with torch.no_grad():
        return model(IDS).logits


def logits(model: torch.nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return model.language_model(IDS).logits[..., :-1]


def loaded(folder: Path) -> torch.nn.Module:
    from transformers import AutoModelForImageTextToText

    return AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")


@pytest.mark.slow
def test_merged_and_as_an_adapter(run: Path, expected: torch.Tensor, tmp_path: Path) -> None:
    from peft import PeftModel

    weights("export", run, "--format", "hf", "--merge-lora", "--out", tmp_path / "merged")
    merged = logits(loaded(tmp_path / "merged"))
    torch.testing.assert_close(merged, expected, rtol=0, atol=1e-4)
    result = weights("export", run, "--format", "hf", "--out", tmp_path / "base")
    assert "--merge-lora" in result.stderr
    base = loaded(tmp_path / "base")
    assert (logits(base) - expected).abs().max() > 0.01
    weights("export", run, "--format", "peft", "--out", tmp_path / "adapter")
    adapted = PeftModel.from_pretrained(base, tmp_path / "adapter").base_model.model
    torch.testing.assert_close(logits(adapted), expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_the_original_gets_the_changed_matrices(run: Path, tmp_path: Path) -> None:
    weights("export", run, "--format", "pth", "--merge-lora", "--out", tmp_path / "mine.pth")
    state = torch.load(tmp_path / "mine.pth", weights_only=True)["model"]
    layers = {key for key in state if key.startswith("llama_model.")}
    assert layers == {
        f"llama_model.model.layers.{n}.self_attn.{kind}_proj.weight"
        for n in range(4) for kind in "qv"
    }  # fmt: skip
    model = ChatModel(find_source(run)).model.language_model
    layer = model.model.layers[2].self_attn.v_proj
    change = layer.get_delta_weight("default")
    found = state["llama_model.model.layers.2.self_attn.v_proj.weight"]
    assert found.dtype == torch.float16
    torch.testing.assert_close(
        found.float(), layer.base_layer.weight + change, rtol=1e-3, atol=1e-5
    )


def test_what_makes_no_sense_is_refused(run: Path, exported: Exported, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "x")
    with pytest.raises(WeightsError, match="has no LoRA"):
        weights("export", exported.run.path, "--format", "peft", *out)
    with pytest.raises((UsageError, AssertionError), match="for --format pth and hf"):
        weights("export", run, "--format", "safetensors", "--merge-lora", *out)
    assert not list(tmp_path.iterdir())

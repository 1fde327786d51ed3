"""An export at the original's widths: ViT-g, BLIP-2's Q-Former and a 7B, few layers deep."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mgpt4_hpc.model.architecture import EVA_G_QFORMER
from mgpt4_hpc.model.bundle.writer import save_parts
from mgpt4_hpc.model.generation.chat_model import ChatModel, find_source
from mgpt4_hpc.model.generation.prompt_embedding import build_context
from mgpt4_hpc.model.tower_shapes import Shapes, connector_shapes, projector_shapes, vision_shapes
from mgpt4_hpc.prompts import Dialogue, Turn
from tests.integration.test_real_width import make_language_model, mgpt4

ARCH = replace(EVA_G_QFORMER, vision_depth=6, qformer_layers=4, llm_dim=4096)


def random_state(shapes: Shapes, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Numbers of the size that trained ones have: norms near one, matrices near zero."""
    state = {}
    for name, shape in shapes.items():
        tensor = torch.randn(shape) * 0.02
        norm = ".norm" in name or "layernorm" in name.lower() or "ln_vision" in name
        state[name] = (tensor + 1 if norm and name.endswith("weight") else tensor).to(dtype)
    return state


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_logits_at_the_originals_widths(tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    torch.manual_seed(0)
    make_language_model(tmp_path / "llm")
    projector = random_state(projector_shapes(ARCH, 4096), torch.float32)
    parts = {
        "vision.safetensors": random_state(vision_shapes(ARCH), torch.float16),
        "connector.safetensors": random_state(connector_shapes(ARCH), torch.float32),
    }
    save_parts(tmp_path / "bundle", parts, ARCH, tmp_path / "llm")
    save_file({f"llama_proj.{k}": t for k, t in projector.items()}, tmp_path / "p.safetensors")
    mgpt4("weights", "export", tmp_path / "p.safetensors", "--weights", tmp_path / "bundle",
          "--format", "hf", "--out", tmp_path / "hf")  # fmt: skip

    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    images = [Image.fromarray(p).resize((224, 224)) for p in pixels]
    pieces = [{"type": "image", "image": image} for image in images]
    text = "What is the difference?"
    messages = [{"role": "user", "content": [*pieces, {"type": "text", "text": text}]}]
    processor = AutoProcessor.from_pretrained(tmp_path / "hf", backend="pil")
    inputs = processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        theirs = AutoModelForImageTextToText.from_pretrained(tmp_path / "hf", dtype="float32")
        found = theirs(**inputs).logits[..., :-1].clone()
        embeddings = theirs.get_image_features(inputs["pixel_values"]).pooler_output
        del theirs
        ours = ChatModel(find_source(tmp_path / "p.safetensors", weights=str(tmp_path / "bundle")))
        stacked = torch.from_numpy(np.stack([np.asarray(image) for image in images]))
        features = ours.encode(stacked.permute(0, 3, 1, 2))
        layout = ours.prompt(Dialogue((Turn((None, None, text), None),)))
        context = build_context(ours.model, ours.tokenizer, [layout], [features])
        expected = ours.model.language_model(inputs_embeds=context.embeds_BTD).logits
        projected = ours.model.project(features)
    print(f"embeddings differ by {(embeddings - projected).abs().max():.1e}, "
          f"logits by {(found - expected).abs().max():.1e}")  # fmt: skip
    torch.testing.assert_close(embeddings, projected, rtol=0, atol=1e-4)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)

"""Storing the towers in the file formats of the original project's downloads.

`eva_vit_g.pth` is flat and half precision, with one block more than is used, a final norm and a
head; `blip2_pretrained_flant5xxl.pth` has everything under "model", with the original Q-Former's
names and a `t5_proj` that MiniGPT-4 drops; `llm/` is a Hugging Face folder. What is surplus there
is surplus here too, so that whoever reads these files has to skip it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaForCausalLM

from toy_world.towers import ARCHITECTURE, Towers

HEAD_WIDTH = 8
T5_WIDTH = 24
MAX_POSITIONS = 512


def _half(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {
        name: value.detach().half().contiguous() if value.is_floating_point() else value
        for name, value in state.items()
    }


def vision_state(towers: Towers) -> dict[str, Tensor]:
    """The vision tower under the original's flat names, with the surplus at its end."""
    state = dict(towers.visual_encoder.state_dict())
    width, depth = int(ARCHITECTURE["vision_width"]), int(ARCHITECTURE["vision_depth"])
    last = {name: value for name, value in state.items() if name.startswith(f"blocks.{depth - 1}.")}
    for name, value in last.items():
        state[name.replace(f"blocks.{depth - 1}.", f"blocks.{depth}.")] = torch.zeros_like(value)
    state["norm.weight"], state["norm.bias"] = torch.ones(width), torch.zeros(width)
    state["head.weight"] = torch.zeros(HEAD_WIDTH, width)
    state["head.bias"] = torch.zeros(HEAD_WIDTH)
    return _half(state)


def original_qformer_name(name: str) -> str:
    """A name of transformers' `Blip2QFormerModel` as the original's BERT calls it."""
    if name.startswith("layernorm."):
        return name.replace("layernorm.", "Qformer.bert.embeddings.LayerNorm.")
    for kind in ("attention", "crossattention"):
        name = name.replace(f".{kind}.attention.", f".{kind}.self.")
    return f"Qformer.bert.{name}"


def qformer_state(towers: Towers) -> dict[str, Tensor]:
    """`ln_vision`, the queries and the Q-Former under the original's names, and the surplus."""
    width = int(ARCHITECTURE["qformer_width"])
    state = {f"ln_vision.{name}": value for name, value in towers.ln_vision.state_dict().items()}
    state["query_tokens"] = towers.query_tokens_1QD
    for name, value in towers.qformer.state_dict().items():
        state[original_qformer_name(name)] = value
    state["Qformer.bert.embeddings.position_ids"] = torch.arange(MAX_POSITIONS)[None]
    state["t5_proj.weight"] = torch.zeros(T5_WIDTH, width)
    state["t5_proj.bias"] = torch.zeros(T5_WIDTH)
    return _half(state)


def write_towers(towers: Towers, out: Path) -> None:
    """Write the two .pth files and architecture.json under `out`."""
    out.mkdir(parents=True, exist_ok=True)
    torch.save(vision_state(towers), out / "eva_vit_g.pth")
    torch.save({"model": qformer_state(towers)}, out / "blip2_pretrained_flant5xxl.pth")
    (out / "architecture.json").write_text(json.dumps(ARCHITECTURE, indent=1) + "\n")


def write_llm(model: LlamaForCausalLM, tokenizer_file: Path, out: Path) -> None:
    """Write the language model and its tokenizer as a Hugging Face folder of the LLaMA era."""
    out.mkdir(parents=True, exist_ok=True)
    config = model.config
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    common = {**tokens, "transformers_version": "4.30.0"}
    described = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.intermediate_size,
        "max_position_embeddings": config.max_position_embeddings,
        "model_type": "llama",
        "num_attention_heads": config.num_attention_heads,
        "num_hidden_layers": config.num_hidden_layers,
        "rms_norm_eps": config.rms_norm_eps,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "use_cache": True,
        "vocab_size": config.vocab_size,
    }
    files = {
        "config.json": {**described, **common},
        "generation_config.json": {"_from_model_config": True, **common},
        "tokenizer_config.json": {
            "add_bos_token": True,
            "add_eos_token": False,
            "bos_token": "<s>",
            "eos_token": "</s>",
            "unk_token": "<unk>",
            "tokenizer_class": "LlamaTokenizer",
            "model_max_length": 2048,
            "legacy": True,
        },
    }
    for name, value in files.items():
        (out / name).write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
    save_file(_half(dict(model.state_dict())), out / "model.safetensors", metadata={"format": "pt"})
    (out / "model.safetensors").chmod(0o644)  # safetensors makes it readable by its owner alone
    if tokenizer_file.resolve() != (out / "tokenizer.model").resolve():
        shutil.copyfile(tokenizer_file, out / "tokenizer.model")

"""Do a language model's tensors fill the model that its config.json describes?

Two answers. For LLaMA, which every published MiniGPT-4 has, a table of shapes answers without
torch, so that ``mgpt4 submit`` can ask on a login node. For every family transformers itself
answers: it loads the model on the meta device, where tensors have shapes and no numbers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.tower_shapes import Shapes
from mgpt4_hpc.model.weight_files.headers import TORCH_NAMES, TensorInfo
from mgpt4_hpc.model.weight_files.untrusted_files import one_line

_SHOWN = 6
_WIDTH = "hidden_size"
_BUFFERS = re.compile(r"(^|\.)(rotary_emb\.inv_freq|position_ids)$")
"""Constants that older files hold and the model computes itself."""

_LOGIT_CHANGES = ("final_logit_softcapping", "logits_scaling", "logit_scale", "lm_head_multiplier")
"""Settings of other models that alter logits after the output matrix, where the loss is blind."""

_PLAIN_DTYPES = (None, "float16", "bfloat16", "float32")

_QUANTIZED = re.compile(
    r"\.(qweight|qzeros|g_idx|absmax|quant_map|quant_state\..+|SCB|weight_scale(_inv)?)$"
)
"""Names of tensors that GPTQ, AWQ, bitsandbytes and FP8 store beside or instead of a weight."""

Stored = Mapping[str, TensorInfo]


@dataclass
class Gaps:
    """How the stored tensors differ from the model's.

    Attributes:
        missing: the model's tensors that no file holds.
        mismatched: the stored name -> the model's shape, where that differs.
        unused: stored tensors that the model does not have; they are not loaded.
    """

    missing: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[int, ...]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


def compare_with_llama(folder: Path, config: Mapping[str, Any], stored: Stored) -> Gaps | None:
    """The differences by the table of shapes; None where config.json is of another family."""
    if config.get("model_type") != "llama":
        return None
    expected = llama_shapes(config, folder)
    has_prefix = any(key.startswith("model.") for key in stored)
    names = {
        key if has_prefix or key == "lm_head.weight" else f"model.{key}": key for key in stored
    }
    gaps = Gaps(
        missing=sorted(key for key in expected if key not in names),
        mismatched={
            names[key]: shape
            for key, shape in expected.items()
            if key in names and stored[names[key]].shape != shape
        },
        unused=[key for ours, key in names.items() if ours not in expected and not is_buffer(key)],
    )
    if config.get("tie_word_embeddings"):
        gaps.missing = [key for key in gaps.missing if key != "lm_head.weight"]
    return gaps


def refuse_logit_changes(config: Any, folder: Path) -> None:
    """Raises WeightsError where a family alters logits behind its output matrix."""
    for name in _LOGIT_CHANGES:
        value = getattr(config, name, None)
        if value not in (None, 1, 1.0):
            raise WeightsError(
                f"the language model in {folder} alters its logits ({name} = {value}), which is "
                "not supported",
                fix="take a model without this setting, as LLaMA, Mistral or Qwen",
            )


def is_plain_llama(config: Mapping[str, Any], folder: Path) -> bool:
    """Whether headers and JSON show all that the load needs: LLaMA, all settings as published."""
    tokenizer = folder / "tokenizer_config.json"
    ids = (config.get(f"{name}_token_id") for name in ("bos", "eos", "pad"))
    numbers = ("rms_norm_eps", "rope_theta", "initializer_range", "attention_dropout")
    return (
        config.get("model_type") == "llama"
        and config.get("hidden_act", "silu") == "silu"
        and config.get("rope_scaling") is None
        and config.get("rope_parameters") is None
        and config.get("torch_dtype", config.get("dtype")) in _PLAIN_DTYPES
        and all(isinstance(config.get(key, 0.0), int | float) for key in numbers)
        and isinstance(config.get("max_position_embeddings", 0), int)
        and not (tokenizer.is_file() and b'"auto_map"' in tokenizer.read_bytes())
        and not any(name in config for name in _LOGIT_CHANGES)
        and all(id is None or (isinstance(id, int) and id < config["vocab_size"]) for id in ids)
    )


def llama_shapes(config: Mapping[str, Any], folder: Path) -> Shapes:
    """Tensors of transformers' ``LlamaForCausalLM``.

    Raises:
        WeightsError: if a size is missing, is no positive number, or does not divide by the heads.
    """
    width, layers, hidden = (
        _size(config, folder, key) for key in (_WIDTH, "num_hidden_layers", "intermediate_size")
    )
    rows, heads = _size(config, folder, "vocab_size"), _size(config, folder, "num_attention_heads")
    key_heads = _size(config, folder, "num_key_value_heads", heads)
    head = _size(config, folder, "head_dim", width // heads)
    if (config.get("head_dim") is None and width % heads) or heads % key_heads:
        raise WeightsError(
            f"{folder / 'config.json'}: {_WIDTH} {width}, num_attention_heads {heads} and "
            f"num_key_value_heads {key_heads} do not divide each other",
            fix="take config.json from the repository of the weights",
        )
    shapes: Shapes = {"model.embed_tokens.weight": (rows, width), "model.norm.weight": (width,)}
    shapes["lm_head.weight"] = (rows, width)
    block: Shapes = {
        "input_layernorm.weight": (width,),
        "post_attention_layernorm.weight": (width,),
    }
    for name, out, into, bias in (
        ("self_attn.q", heads * head, width, "attention_bias"),
        ("self_attn.k", key_heads * head, width, "attention_bias"),
        ("self_attn.v", key_heads * head, width, "attention_bias"),
        ("self_attn.o", width, heads * head, "attention_bias"),
        ("mlp.gate", hidden, width, "mlp_bias"),
        ("mlp.up", hidden, width, "mlp_bias"),
        ("mlp.down", width, hidden, "mlp_bias"),
    ):
        block[f"{name}_proj.weight"] = (out, into)
        if config.get(bias):
            block[f"{name}_proj.bias"] = (out,)
    for index in range(layers):
        shapes |= {f"model.layers.{index}.{name}": shape for name, shape in block.items()}
    return shapes


def _size(config: Mapping[str, Any], folder: Path, key: str, default: int | None = None) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise WeightsError(
            f"{folder / 'config.json'}: {key} = {value!r} is not a positive whole number",
            fix="take config.json from the repository of the weights",
        )
    return value


def compare_by_loading(folder: Path, stored: Stored) -> Gaps:
    """The differences that transformers reports when it loads the tensors without their numbers.

    Raises:
        WeightsError: if transformers cannot build the model.
    """
    import torch

    from mgpt4_hpc.model.lazy import garbage_collector_off, quiet_transformers

    with garbage_collector_off():
        from transformers import AutoConfig, AutoModelForCausalLM

    tensors = _on_meta(stored)
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            with torch.device("meta"):
                family = type(AutoModelForCausalLM.from_config(config))
            # What is missing would be filled with random numbers, gigabytes of them.
            unfilled = type(
                family.__name__,
                (family,),
                {"initialize_weights": lambda _self: None, "__module__": family.__module__},
            )
            refuse_logit_changes(config, folder)
            _, loading = unfilled.from_pretrained(  # type: ignore[attr-defined]
                None, config=config, state_dict=tensors, dtype=torch.float16,
                ignore_mismatched_sizes=True, output_loading_info=True,
            )  # fmt: skip
        except WeightsError:
            raise
        except Exception as error:
            raise WeightsError(
                f"transformers cannot build the language model in {folder}: {one_line(error)}",
                fix="take config.json from the repository of the weights",
            ) from error
    return Gaps(
        missing=sorted(loading["missing_keys"]),
        mismatched={key: tuple(wanted) for key, _, wanted in sorted(loading["mismatched_keys"])},
        unused=sorted(loading["unexpected_keys"]),
    )


def _on_meta(stored: Stored) -> dict[str, Any]:
    """Tensors of the stored shapes and types, without numbers, that stay on the meta device."""
    import torch

    class OnMeta(torch.Tensor):
        """Stays on the meta device when the loader moves it to another."""

        def to(self, *_arguments: Any, **_options: Any) -> torch.Tensor:
            """The tensor itself."""
            return self

    return {
        key: torch.empty(
            info.shape, dtype=getattr(torch, TORCH_NAMES.get(info.dtype, "float16")), device="meta"
        ).as_subclass(OnMeta)
        for key, info in stored.items()
    }


def is_buffer(key: str) -> bool:
    """Whether the tensor is a constant that the model computes itself."""
    return bool(_BUFFERS.search(key))


def gap_faults(folder: Path, config: Mapping[str, Any], stored: Stored, gaps: Gaps) -> list[str]:
    """Each difference that the load would refuse, in words, with file, tensor and fix."""
    if quantized := next((key for key in stored if _QUANTIZED.search(key)), None):
        return [quantized_fault(f"{stored[quantized].file} holds {quantized}")]
    if gaps.missing and (fault := _prefix_fault(stored, gaps.missing)):
        return [fault]
    faults = _head_faults(folder, config, stored)
    faults += _shown(
        [
            f"{stored[key].file}: {key} is {_words(stored[key].shape)}, by config.json it is "
            f"{_words(shape)}"
            for key, shape in gaps.mismatched.items()
            if key in stored
        ],
        _mismatch_fix(gaps.mismatched, stored),
    )
    if gaps.missing == ["lm_head.weight"]:
        faults.append(
            f"{folder} has no lm_head.weight\n  fix: these are the weights of the base model alone:"
            " take those of the causal model, or set tie_word_embeddings in config.json if its "
            "output matrix is the embedding"
        )
    else:
        faults += _shown(
            [f"{folder} has no tensor {key}" for key in gaps.missing],
            "download all weight files, and config.json from the same repository",
        )
    used = (key for key in stored if key not in set(gaps.unused) and not is_buffer(key))
    return faults + _shown(
        [
            f"{stored[key].file}: {key} has type {stored[key].dtype}, a floating type is needed"
            for key in used
            if not stored[key].is_floating_point()
            and stored[key].shape
            and not key.endswith(("attn.bias", "attention.bias", "masked_bias"))
        ],
        "take the model's weights in float16, bfloat16 or float32",
    )


def quantized_fault(what: str) -> str:
    """The refusal of weights that are stored in few bits."""
    return (
        f"{what}: the weights are quantized, which cannot be trained through\n"
        "  fix: take the model's weights in float16 or bfloat16; model.llm_8bit=true rounds them "
        "to 8 bits when they are loaded"
    )


def _prefix_fault(stored: Stored, missing: list[str]) -> str:
    """The fault of names that only have something in front, as DDP's ``module.``; empty if none."""
    some = next(iter(stored), "")
    parts = some.split(".")
    for count in range(1, len(parts)):
        front = ".".join(parts[:count]) + "."
        if not all(key.startswith(front) for key in stored):
            break
        if {key.removeprefix(front) for key in stored} >= set(missing):
            return (
                f"{stored[some].file}: every tensor's name begins with {front!r} ({some})\n"
                f"  fix: save the model without its wrapper (model.{parts[count - 1]}."
                "save_pretrained(...)), or take the front part off the names"
            )
    return ""


def _head_faults(folder: Path, config: Mapping[str, Any], stored: Stored) -> list[str]:
    """Constants in older files show the width of a head, which no weight's shape does."""
    heads, width = config.get("num_attention_heads"), config.get(_WIDTH)
    held = next((i for key, i in stored.items() if key.endswith("rotary_emb.inv_freq")), None)
    if held is None or not isinstance(heads, int) or not isinstance(width, int) or heads < 1:
        return []
    head = config.get("head_dim") or width // heads
    if config.get("partial_rotary_factor") or held.shape == (head // 2,):
        return []
    stored_head = 2 * held.shape[0] if held.shape else 0
    return [
        f"{folder / 'config.json'}: num_attention_heads {heads} makes heads of {head}, "
        f"{held.file} was made with heads of {stored_head}\n"
        f"  fix: set num_attention_heads to {width // max(1, stored_head)}"
    ]


def _mismatch_fix(mismatched: Mapping[str, tuple[int, ...]], stored: Stored) -> str:
    rows = {stored[key].shape[0] - shape[0] for key, shape in mismatched.items() if key in stored
            and stored[key].shape[1:] == shape[1:] and stored[key].shape}  # fmt: skip
    vocabulary = all(key.endswith(("embed_tokens.weight", "lm_head.weight")) for key in mismatched)
    if vocabulary and len(rows) == 1:
        held = next(stored[key].shape[0] for key in mismatched)
        return (
            f"take config.json and tokenizer from the repository of the weights (vocab_size {held})"
        )
    return "take config.json and the weights from one repository, or download the file again"


def _words(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a single number"


def _shown(lines: list[str], fix: str) -> list[str]:
    """The first few, the number of the others, and the fix once."""
    more = [f"... and {len(lines) - _SHOWN} more of these"] if len(lines) > _SHOWN else []
    listed = lines[:_SHOWN] + more
    return [*listed[:-1], f"{listed[-1]}\n  fix: {fix}"] if listed else []

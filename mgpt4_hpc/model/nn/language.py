"""The frozen language model: any causal one that transformers can build from a local folder.

Only embeddings, trunk and output matrix are used, so that logits are computed where there is a
label and nowhere else.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.lazy import garbage_collector_off, quiet_transformers
from mgpt4_hpc.model.llm_files.tensors import refuse_logit_changes
from mgpt4_hpc.model.nn.attention import PACKABLE_MODELS, PACKED, register
from mgpt4_hpc.model.nn.int8 import eight_bit_arguments
from mgpt4_hpc.model.nn.norms import fuse_norms
from mgpt4_hpc.model.nn.performance.node_broadcast import LocalRunner, load_once_per_node
from mgpt4_hpc.model.weight_files.untrusted_files import load_error
from mgpt4_hpc.text_files import parse_json


def load_language_model(
    llm_dir: Path,
    *,
    dtype: torch.dtype,
    attention: str,
    device: torch.device,
    eight_bit: bool = False,
) -> nn.Module:
    """The model in ``dtype`` on ``device``, frozen, in eval mode.

    ``eight_bit`` rounds its matrices to 8 bits, all but embeddings and output.

    Raises:
        WeightsError: if transformers cannot build or load it, weights are missing, or its logits
            need more than the output matrix.
    """
    with garbage_collector_off():
        from transformers import AutoConfig, AutoModelForCausalLM

    extra = eight_bit_arguments(device) if eight_bit else {}
    with quiet_transformers():
        try:
            config = AutoConfig.from_pretrained(
                llm_dir, local_files_only=True, trust_remote_code=False
            )
            model, loading = AutoModelForCausalLM.from_pretrained(
                llm_dir,
                config=config,
                dtype=dtype,
                attn_implementation=_implementation(attention, config.model_type),
                local_files_only=True,
                trust_remote_code=False,  # without it transformers asks at the terminal
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # named below; transformers would only log them
                **extra,
            )
        except Exception as error:
            raise load_error(f"the language model in {llm_dir}", error) from error
    _refuse_gaps(llm_dir, loading)
    refuse_logit_changes(model.config, llm_dir)
    model = _frozen(model)
    return model if eight_bit else model.to(device)


def load_shared_language_model(
    llm_dir: Path,
    *,
    dtype: torch.dtype,
    attention: str,
    device: torch.device,
    ranks: Ranks,
    run_locally: LocalRunner = lambda read: read(),
) -> nn.Module:
    """As ``load_language_model``, read by one rank of each node; all ranks must call it.

    ``run_locally`` does the reading.

    Raises:
        WeightsError: as there, on every rank.
    """

    def plan() -> nn.Module:
        """The model without values, on the meta device."""
        config = parse_json((llm_dir / "config.json").read_text(encoding="utf-8"))
        with torch.device("meta"):
            return build_language_model(config, dtype=dtype, attention=attention)

    load = partial(load_language_model, llm_dir, dtype=dtype, attention=attention, device=device)
    return load_once_per_node(load, plan, ranks, device, run_locally)


def build_language_model(
    config: dict[str, Any], *, dtype: torch.dtype, attention: str
) -> nn.Module:
    """An empty model from a configuration's values, on the current default device."""
    with garbage_collector_off():
        from transformers import AutoConfig, AutoModelForCausalLM

    values = {key: value for key, value in config.items() if key != "model_type"}
    with quiet_transformers():
        try:
            built = AutoModelForCausalLM.from_config(
                AutoConfig.for_model(config["model_type"], **values),
                dtype=dtype,
                attn_implementation=_implementation(attention, config["model_type"]),
            )
        except Exception as error:
            raise load_error("a language model of these settings", error) from error
    return _frozen(built)


def _frozen(model: nn.Module) -> nn.Module:
    if runs_packed(model):
        fuse_norms(model)
    return model.requires_grad_(False).eval()


def trunk(model: nn.Module) -> nn.Module:
    """The model without its output matrix: embeddings in, hidden states out."""
    base = model.base_model
    assert isinstance(base, nn.Module) and base is not model
    return base


def runs_packed(model: nn.Module) -> bool:
    """Whether it was built to take sequences one after the other, without padding."""
    config: Any = model.config
    return bool(config._attn_implementation == PACKED)


def _implementation(attention: str, model_type: str) -> str:
    """Transformers' word for our setting; families that were never seen packed are padded."""
    if attention != "packed":
        return attention
    if model_type not in PACKABLE_MODELS:
        return "sdpa"
    register()
    return PACKED


def _refuse_gaps(llm_dir: Path, loading: dict[str, Any]) -> None:
    """Transformers fills missing weights at random and only warns: that would train on noise."""
    missing = sorted(loading.get("missing_keys", ()))
    wrong = [
        f"{name} {tuple(held)} instead of {tuple(wanted)}"
        for name, held, wanted in sorted(loading.get("mismatched_keys", ()))
    ]
    if missing or wrong:
        raise WeightsError(
            f"the weights in {llm_dir} do not fill the model: missing {missing[:8]}, "
            f"of another shape {wrong[:8]}",
            fix="check that all shards are there and that config.json belongs to them",
        )

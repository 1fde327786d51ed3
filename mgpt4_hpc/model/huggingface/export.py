"""A trained MiniGPT-4 as a folder for ``transformers``' own ``Blip2ForConditionalGeneration``.

Beside what transformers reads, the folder has ``mgpt4/``: what ``mgpt4 weights import --hf`` needs
to make the same bundle of it again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle.bundle import Bundle
from mgpt4_hpc.model.bundle.manifest import EXPORT_FOLDER, EXPORT_RECORD
from mgpt4_hpc.model.bundle.writer import appearing, require_free
from mgpt4_hpc.model.conversion.variants import require_projector_fits
from mgpt4_hpc.model.huggingface.lora import merge_lora, write_adapter
from mgpt4_hpc.model.huggingface.processor import ImageToken, export_processor, image_token
from mgpt4_hpc.model.huggingface.shards import Entry, write_shards
from mgpt4_hpc.model.huggingface.tensors import (
    language_entries,
    projector_entries,
    vision_entries,
    with_mean_row,
)
from mgpt4_hpc.model.lazy import garbage_collector_off, quiet_transformers
from mgpt4_hpc.model.llm_files.folder import companion_files, llm_files
from mgpt4_hpc.model.llm_files.tokenizer import TextTokenizer, load_tokenizer
from mgpt4_hpc.model.nn.lora import SavedLora
from mgpt4_hpc.model.weight_files.untrusted_files import load_error
from mgpt4_hpc.prompts import Template

if TYPE_CHECKING:
    import torch
    from torch import nn

LANGUAGE = "language_model."
_ANSWER_TOKENS = 300


@dataclass(frozen=True)
class TrainedModel:
    """What is exported.

    Attributes:
        bundle: the frozen parts.
        projector: ``weight`` and ``bias``.
        template, system: how it is asked.
        lora: to be merged into the language model, if anything.
    """

    bundle: Bundle
    projector: Mapping[str, torch.Tensor]
    template: Template
    system: str = ""
    lora: SavedLora | None = None


def require_exportable(architecture: Architecture) -> None:
    """Raises WeightsError for the variant that no class of transformers computes."""
    if not architecture.qformer:
        raise WeightsError(
            "a model without Q-Former (the Llama-2 variant) cannot be exported for transformers",
            why="it joins four patches of the ViT to a token, which no class of transformers does",
            fix="export the projector with --format pth or safetensors, or serve the model with "
            "`mgpt4 serve`",
        )


def export_model(
    out: Path,
    model: TrainedModel,
    *,
    card: str,
    say: Callable[[str], None] = lambda _line: None,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Write the folder; it appears under its name when it is complete.

    Args:
        out: the new folder.
        model: its parts.
        card: text of its README.md.
        say: called with a line before each slow step.
        on_progress: called with the bytes written, and all that there are.

    Raises:
        WeightsError: if no class of transformers fits, a part is missing or broken, or the disk is
            too full; nothing is left behind.
    """
    bundle = model.bundle
    arch = bundle.architecture
    require_exportable(arch)
    require_projector_fits(
        arch, arch.llm_dim or 0, tuple(model.projector["weight"].shape), "the projector"
    )
    tokenizer = load_tokenizer(bundle.llm_dir)
    image = image_token(tokenizer, arch.num_image_tokens)
    language = language_entries(bundle.llm_dir, bundle.llm_config)
    merged = merge_lora(language, model.lora) if model.lora else {}
    config = _config(bundle, image, _ends(tokenizer, model.template.end_symbol), language)
    say("building the model without its numbers, to check the names")
    skeleton = _skeleton(config)
    longer = [n for n in _extended(skeleton, bundle.llm_config, image) if n in language]
    language = {
        name: with_mean_row(entry) if name in longer else entry
        for name, entry in (language | merged).items()
    }
    entries = vision_entries(bundle) | projector_entries(model.projector)
    entries |= {LANGUAGE + name: entry for name, entry in language.items()}
    _check_names(skeleton, entries)
    require_free(out.parent, sum(entry.num_bytes for entry in entries.values()))
    with appearing(out, say) as folder:
        say("writing the processor")
        export_processor(
            folder, tokenizer, model.template, image,
            image_size=arch.image_size, system=model.system,
        )  # fmt: skip
        _write_settings(folder, config, tokenizer, model.template)
        _write_ours(folder / EXPORT_FOLDER, bundle, longer)
        (folder / "README.md").write_text(card, encoding="utf-8")
        say("writing the weights")
        write_shards(folder, entries, on_progress=on_progress)


def export_adapter(out: Path, lora: SavedLora, say: Callable[[str], None]) -> None:
    """Write LoRA as a PEFT adapter to the exported model; errors as of ``export_model``."""
    with appearing(out, say) as folder:
        write_adapter(folder, lora)


def _ends(tokenizer: TextTokenizer, end_symbol: str) -> list[int]:
    """The end token, and every token that by itself completes the end symbol."""
    symbols = [
        id for id, token in enumerate(tokenizer.tokens())
        if end_symbol and end_symbol in token and id != tokenizer.eos_id
    ]  # fmt: skip
    return [tokenizer.eos_id, *symbols]


def _config(
    bundle: Bundle, image: ImageToken, ends: Sequence[int], language: Mapping[str, Entry]
) -> Any:
    """The ``Blip2Config``.

    It has one epsilon for the ViT's norms and ``ln_vision`` where the model has two; it takes the
    ViT's.
    """
    with garbage_collector_off():
        from transformers import Blip2Config

    from mgpt4_hpc.model.nn.vision import LAYER_NORM_EPS

    arch = bundle.architecture
    kinds = {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
    largest = max(language.values(), key=lambda entry: entry.num_bytes)
    rows = max(int(bundle.llm_config["vocab_size"]), image.id + 1)
    return Blip2Config(
        architectures=["Blip2ForConditionalGeneration"],
        dtype=kinds[largest.dtype],
        vision_config={
            "hidden_size": arch.vision_width,
            "intermediate_size": arch.vision_mlp_width,
            "num_hidden_layers": arch.vision_depth,
            "num_attention_heads": arch.vision_heads,
            "image_size": arch.image_size,
            "patch_size": arch.patch_size,
            "layer_norm_eps": LAYER_NORM_EPS,
        },
        qformer_config={
            "hidden_size": arch.qformer_width,
            "num_hidden_layers": arch.qformer_layers,
            "num_attention_heads": arch.qformer_heads,
            "intermediate_size": arch.qformer_mlp_width,
            "cross_attention_frequency": arch.cross_attention_frequency,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
        text_config=bundle.llm_config | {"vocab_size": rows, "eos_token_id": list(ends)},
        num_query_tokens=image.count,
        image_token_index=image.id,
        tie_word_embeddings=bool(bundle.llm_config.get("tie_word_embeddings", False)),
    )


def _skeleton(config: Any) -> nn.Module:
    """The model without numbers."""
    import torch
    from transformers import Blip2ForConditionalGeneration

    with torch.device("meta"), quiet_transformers():
        try:
            model: nn.Module = Blip2ForConditionalGeneration(config)
        except Exception as error:
            raise load_error("this language model in transformers' BLIP-2", error) from error
    return model


def _extended(skeleton: nn.Module, llm_config: Mapping[str, Any], image: ImageToken) -> list[str]:
    """The language model's tensors that have no row yet for the image token."""
    if image.id < int(llm_config["vocab_size"]):
        return []
    language = skeleton.get_submodule("language_model")
    ends = [language.get_input_embeddings(), language.get_output_embeddings()]  # type: ignore[operator]
    return [
        f"{name}.{key}"
        for name, module in language.named_modules()
        if any(module is end for end in ends)
        for key, _ in module.named_parameters()
    ]


def _check_names(skeleton: nn.Module, entries: dict[str, Entry]) -> None:
    """Drop what the class does not have; raises WeightsError for what it misses."""
    expected = {name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()}
    tied = set(getattr(skeleton, "all_tied_weights_keys", {}))
    given = {name: entry.shape for name, entry in entries.items()}
    wrong = [
        f"{name} {given.get(name, 'missing')} instead of {shape}"
        for name, shape in expected.items()
        if given.get(name) != shape and not (name in tied and name not in given)
    ]
    if wrong:
        raise WeightsError(
            f"transformers' BLIP-2 does not take these weights: {'; '.join(wrong[:4])}",
            why=f"{len(wrong)} tensors differ from those of its class",
        )
    for name in set(entries) - set(expected):
        del entries[name]


def _write_settings(
    folder: Path, config: Any, tokenizer: TextTokenizer, template: Template
) -> None:
    """``config.json`` and ``generation_config.json``."""
    from transformers import GenerationConfig

    config.save_pretrained(folder)
    ends = config.text_config.eos_token_id
    # The end symbol may be made of several tokens, which only its text shows.
    stop = {"stop_strings": [template.end_symbol]} if template.end_symbol else {}
    GenerationConfig(
        bos_token_id=tokenizer.bos_id,
        eos_token_id=ends,
        pad_token_id=tokenizer.pad_id,
        max_new_tokens=_ANSWER_TOKENS,
        do_sample=False,
        **stop,
    ).save_pretrained(folder)


def _write_ours(folder: Path, bundle: Bundle, longer: Sequence[str]) -> None:
    (folder / "llm").mkdir(parents=True)
    weights = (".safetensors", ".bin", ".index.json")
    files = [*llm_files(bundle.llm_dir), *companion_files(bundle.llm_dir)]
    for path in files:
        if not path.name.endswith(weights):
            shutil.copyfile(path, folder / "llm" / path.name)
    record = {
        "format": 1,
        "bundle": bundle.digest,
        "architecture": bundle.architecture.to_dict(),
        "with_image_row": list(longer),
    }
    (folder / EXPORT_RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

"""The README.md of an exported model, made from its run."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from mgpt4_hpc.config import keys
from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.model.bundle.bundle import Bundle
from mgpt4_hpc.model.bundle.published import read_published
from mgpt4_hpc.model.conversion.variants import find_variant
from mgpt4_hpc.run_dir import RunDir, read_json
from mgpt4_hpc.run_reference import step_of
from mgpt4_hpc.telemetry import tags
from mgpt4_hpc.telemetry.report import read_curves
from mgpt4_hpc.telemetry.run_card import text_card

USE = """\
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

folder = "FOLDER"
processor = AutoProcessor.from_pretrained(folder, backend="pil")
model = AutoModelForImageTextToText.from_pretrained(folder, dtype="float32")
question = [
    {"type": "image", "image": Image.open("photo.jpg")},
    {"type": "text", "text": "Describe this image in detail."},
]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": question}], tokenize=True, return_dict=True, return_tensors="pt"
)
ids = model.generate(
    **inputs, generation_config=model.generation_config, tokenizer=processor.tokenizer
)
answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
print(answer.removesuffix("END").strip())
"""
"""What docs/export.md shows; FOLDER and END stand for the export's own."""

_POINTS = 10


def model_card(
    name: str,
    bundle: Bundle,
    *,
    end_symbol: str,
    run: RunDir | None = None,
    step: int | None = None,
    merged_lora: bool = False,
) -> str:
    """Markdown with the hub's metadata on top.

    Args:
        name: of the model.
        bundle: the frozen parts.
        end_symbol: what ends an answer.
        run: that trained it, where there is one: settings, curve and scores come from there.
        step: of the checkpoint.
        merged_lora: whether LoRA became part of the language model.
    """
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: image-text-to-text\nlicense: other\n"
        "tags:\n- minigpt-4\n- blip-2\n---\n",
        f"# {name}\n",
        _about(bundle, step, merged_lora),
        f"## Use\n\n```python\n{use(name, end_symbol)}```\n",
    ]
    if run is not None:
        parts += [_training(run), _curve(run, step)]
    parts.append(_licences(bundle))
    return "\n".join(parts)


def use(folder: str, end_symbol: str) -> str:
    """``USE`` for one export."""
    return USE.replace('"FOLDER"', json.dumps(folder)).replace('"END"', json.dumps(end_symbol))


def _about(bundle: Bundle, step: int | None, merged_lora: bool) -> str:
    arch = bundle.architecture
    trained = "the projection between them" + (" and LoRA, which is merged" if merged_lora else "")
    return (
        f"MiniGPT-4: a frozen ViT of width {arch.vision_width} with a Q-Former and a frozen "
        f"{bundle.llm_config.get('model_type', 'language')} model of width {arch.llm_dim}; trained "
        f"was {trained}{f', for {step:,} steps' if step is not None else ''}. Images become "
        f"{arch.num_image_tokens} tokens each, at {arch.image_size} x {arch.image_size} pixels.\n"
    )


def _training(run: RunDir) -> str:
    """Data and settings."""
    resolved = read_config(run.config_file)
    config = resolved.config
    total = sum(source.weight for source in config.data.sources)
    data = [f"- {source.name}: {source.weight / total:.0%}" for source in config.data.sources]
    settings = keys.flatten(config.model_dump(mode="json"))
    # Paths name the site that trained it, and not the data.
    public = [
        key for key in resolved.origins
        if not key.startswith(("launch", "container", "data.", "model.weights"))
    ]  # fmt: skip
    if config.model.projector is not None:
        settings["model.projector"] = _name_of_start(run, config.model.projector)
    identity = read_json(run.identity_file)
    card = text_card(run.name, identity, {}, settings, dict.fromkeys(public, "the run"))
    return "## Training\n\n" + "\n".join(data) + f"\n\n{card}\n"


def _name_of_start(run: RunDir, projector: str) -> str:
    """The first projector without the path: a run and its step where the path has them, or a name.

    A checkpoint may lie outside its run, and no other folder's name is for the public.
    """
    with suppress(OSError, ValueError, KeyError):
        projector = read_json(run.pins_file)["about"]["projector"] or projector
    path = Path(projector)
    step = step_of(path) if path.parent.name == "checkpoints" else None
    return path.name if step is None else f"{path.parent.parent.name}, step {step}"


def _curve(run: RunDir, step: int | None) -> str:
    """Losses at some steps, and the newest score of each kind, up to the exported step."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for folder in (run.tensorboard, run.tensorboard / "eval"):
        if folder.is_dir():
            curves |= read_curves(folder)
    until = {
        tag: [(at, value) for at, value in points if step is None or at <= step]
        for tag, points in curves.items()
    }
    lines = ["## Results\n"]
    losses = until.get(tags.TRAIN_LOSS, [])
    if losses:
        held_out = dict(until.get(tags.VAL_LOSS, []))
        stride = max(1, (len(losses) - 1) // (_POINTS - 1))
        lines += ["| step | training loss | held-out loss |", "|---|---|---|"]
        for at, value in sorted({*losses[::stride], losses[-1]}):
            other = f"{held_out[at]:.4f}" if at in held_out else ""
            lines.append(f"| {at} | {value:.4f} | {other} |")
    scores = {tag: points[-1] for tag, points in until.items()
              if points and tag.startswith(tags.EVAL)}  # fmt: skip
    if scores:
        lines += ["", "| score | value | at step |", "|---|---|---|"]
        for tag, (at, value) in sorted(scores.items()):
            lines.append(f"| {tag.removeprefix(tags.EVAL)} | {value:.4f} | {at} |")
    return "\n".join(lines if len(lines) > 1 else [*lines, "Nothing was recorded."]) + "\n"


def _licences(bundle: Bundle) -> str:
    """Licences of the published parts with these sizes, where the project knows them."""
    variant = find_variant(bundle.architecture)
    try:
        sources = read_published().parts(variant.name) if variant else {}
    except ConfigError:
        sources = {}
    known = [f"- {part}: {source.licence}" for part, source in sources.items() if source.licence]
    if not known:
        known = ["- The parts are of no published model: ask whoever made them."]
    return (
        "## Licences of the parts\n\n" + "\n".join(known) + "\n\nThe licence of the language model "
        "holds for the whole. Training data have licences of their own.\n"
    )

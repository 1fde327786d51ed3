"""The original's ``train_configs/*.yaml`` as our settings, key by key.

Every key is used, left out for a stated reason, or an error because the run would be another
one without it. Site-specific values that the original keeps inside its own checkout (shard paths,
under ``minigpt4/configs``) are read from there if the file still lies in a checkout.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mgpt4_hpc.config.yaml_file import read_yaml
from mgpt4_hpc.errors import ConfigError
from mgpt4_hpc.prompts import IMAGE_TAG, STAGE1_END_SYMBOL, STAGE2_INSTRUCTIONS, TEMPLATES
from mgpt4_hpc.text_files import NotUtf8, read_utf8

GPUS = {1: 4, 2: 1}
"""GPUs that each stage was trained on: the batch size in the original's files is per GPU."""

MAX_ANSWER_TOKENS = 32
"""The original's default in either stage; only its stage-2 files say 160."""

_MODEL_FILES = {
    "pretrain_vicuna0": "models/minigpt4_vicuna0.yaml",
    "pretrain_llama2": "models/minigpt4_llama2.yaml",
}
_DATASET_FILES = {
    "laion": "datasets/laion/defaults.yaml",
    "cc_sbu": "datasets/cc_sbu/defaults.yaml",
    "cc_sbu_align": "datasets/cc_sbu/align.yaml",
}
_STAGE_OF_DATASET = {"laion": 1, "cc_sbu": 1, "cc_sbu_align": 2}

_NUMBERS: dict[str, tuple[str, type]] = {
    "run.init_lr": ("train.lr", float),
    "run.min_lr": ("train.min_lr", float),
    "run.warmup_lr": ("train.warmup_start_lr", float),
    "run.weight_decay": ("train.weight_decay", float),
    "run.beta2": ("train.beta2", float),
    "run.num_workers": ("data.num_workers", int),
    "run.seed": ("seed", int),
}

_ONLY: dict[str, tuple[tuple[Any, ...], str]] = {
    "model.arch": (("minigpt4",), "the only model here"),
    "model.vit_model": (("eva_clip_g",), "the vision tower is EVA-CLIP ViT-g/14"),
    "model.freeze_vit": ((True,), "only the projector is trained"),
    "model.freeze_qformer": ((True,), "only the projector is trained"),
    "model.drop_path_rate": ((0, 0.0), "a frozen tower drops nothing"),
    "model.low_resource": ((False,), "it serves the original's demo, and never its training"),
    "run.task": (("image_text_pretrain",), "the only one here"),
    "run.lr_sched": (("linear_warmup_cosine_lr",), "the only one here"),
    "run.evaluate": ((False,), "`mgpt4 eval` evaluates"),
    "run.resume_ckpt_path": ((None, ""), "a run goes on with `mgpt4 resume RUN`"),
    "run.train_splits": ((["train"],), "there is no other"),
}
"""Values that change nothing here, for the reason beside them; any other is an error."""

_LEFT_OUT = {
    "model.model_type": "what it stands for was read from the keys and the bundle",
    "model.llama_model": "part of the bundle: mgpt4 weights import --llm DIR, then model.weights",
    "model.q_former_model": "part of the bundle: mgpt4 weights import --qformer FILE",
    "model.has_qformer": "the bundle says so",
    "model.num_query_token": "the bundle says so",
    "model.image_size": "the bundle says so",
    "model.use_grad_checkpoint": "it concerned the frozen ViT, which keeps no activations here",
    "model.prompt": "it belongs to the original's demo",
    "model.device_8bit": "it belongs to the original's demo",
    "run.amp": "16 bits are the default on a GPU (model.precision), fp16 always scales its loss",
    "run.output_dir": "--runs-dir says where runs lie",
    "run.world_size": "launch.gpus, or torchrun --nproc-per-node",
    "run.dist_url": "the ranks find each other by themselves",
    "run.dist_backend": "nccl on GPUs, gloo on CPUs",
    "run.distributed": "always, where there is more than one rank",
    "run.wandb_log": "curves go to TensorBoard, in the run directory",
    "run.log_freq": "train.log_every_steps; it printed to the log only",
    "run.runner": "there is one training loop",
}

_PLACEHOLDERS = ("/path/to/", "path/to/", "please set")


@dataclass
class Imported:
    """What became of the original's keys.

    Attributes:
        settings: ours, by dotted key.
        origins: for each of them the original's key or keys.
        left_out: the original's key to the reason why it has no counterpart.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: Any, origin: str) -> None:
        """Set one of ours."""
        self.settings[key] = value
        self.origins[key] = origin


def is_original(nested: Mapping[str, Any]) -> bool:
    """Whether a YAML file is one of the original's: ours has no section ``run``."""
    model = nested.get("model")
    return isinstance(nested.get("run"), Mapping) and isinstance(model, Mapping) and "arch" in model


def import_original(nested: Mapping[str, Any], path: Path, *, gpus: int | None = None) -> Imported:
    """Our settings for one of the original's files.

    Args:
        nested: its content.
        path: where it lies, to find what the original keeps elsewhere in its checkout.
        gpus: GPUs to train on; the global batch is theirs together, as in the original.

    Raises:
        ConfigError: listing every value that would make this another run.
    """
    arch = nested["model"]["arch"]
    if arch != "minigpt4":
        raise ConfigError(f"{path} is for {arch}, which is another model than MiniGPT-4")
    theirs = dict(_leaves(_with_defaults(nested, path)))
    imported = Imported()
    faults: list[str] = []
    for key, (only, why) in _ONLY.items():
        if key in theirs:
            value = theirs.pop(key)
            if value in only:
                imported.left_out[key] = f"as it is here ({why})"
            else:
                faults.append(f"{key} is {value!r}: {why}")
    for key, (ours, kind) in _NUMBERS.items():
        if key in theirs:
            value = theirs.pop(key)
            # PyYAML reads 1e-4, written without a dot, as text; the original's reader does not.
            try:
                imported.put(ours, kind(value), key)
            except (TypeError, ValueError):
                faults.append(f"{key} is {value!r}, which is no number")
    for key, why in _LEFT_OUT.items():
        if key in theirs:
            theirs.pop(key)
            imported.left_out[key] = why
    stage = 2 if theirs.get("model.prompt_path") else 1
    imported.put("stage", stage, "model.prompt_path" if stage == 2 else "no model.prompt_path")
    accum = _take_run(imported, faults, theirs)
    _take_text(imported, faults, theirs, stage, path)
    _take_datasets(imported, faults, theirs, stage, (gpus or GPUS[stage], accum))
    _take_rest(imported, faults, theirs)
    if faults:
        raise ConfigError(f"{path} cannot be trained here as it is", faults=faults)
    return imported


def _with_defaults(nested: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The file over what the original's checkout around it holds, if there is one."""
    configs = path.resolve().parent.parent / "minigpt4" / "configs"
    files = [_MODEL_FILES.get(str(nested["model"].get("model_type")))]
    files += [_DATASET_FILES.get(str(name)) for name in nested.get("datasets") or {}]
    merged: dict[str, Any] = {}
    for name in files:
        if name is not None and (configs / name).is_file():
            below = read_yaml(configs / name)
            below.pop("preprocess", None)  # the train files name their processors themselves
            merged = _over(merged, below)
    return _over(merged, nested)


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        lower = merged.get(key)
        both = isinstance(lower, Mapping) and isinstance(value, Mapping)
        merged[key] = _over(lower, value) if both else value  # type: ignore[arg-type]
    return merged


def _leaves(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in nested.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _take_run(imported: Imported, faults: list[str], theirs: dict[str, Any]) -> int:
    """Steps, name, device: what needs more than renaming. Returns batches per optimizer step."""
    accum = int(theirs.pop("run.accum_grad_iters", 1) or 1)
    epochs, iters = theirs.pop("run.max_epoch", None), theirs.pop("run.iters_per_epoch", None)
    warmup = int(theirs.pop("run.warmup_steps", 0) or 0)
    if epochs is None or iters is None:
        faults.append("run.max_epoch and run.iters_per_epoch are both needed")
    else:
        total = int(epochs) * int(iters)
        if total % accum or warmup % accum:
            faults.append(f"run.accum_grad_iters {accum} does not divide the steps")
        if warmup > int(iters):
            faults.append(
                f"run.warmup_steps {warmup} is above run.iters_per_epoch {iters}: the original "
                "would repeat its warm-up in each epoch"
            )
        imported.put("train.max_steps", total // accum, "run.max_epoch x run.iters_per_epoch")
    imported.put("train.warmup_steps", warmup // accum, "run.warmup_steps")
    if "run.job_name" in theirs:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", str(theirs.pop("run.job_name"))).strip("-._")
        imported.put("name", name or "run", "run.job_name")
    device = theirs.pop("run.device", "cuda")
    if device not in ("cuda", "cpu"):
        faults.append(f"run.device is {device!r}: cuda or cpu")
    imported.put("train.device", device, "run.device")
    return accum


def _take_text(
    imported: Imported, faults: list[str], theirs: dict[str, Any], stage: int, path: Path
) -> None:
    limit = theirs.pop("model.max_txt_len", MAX_ANSWER_TOKENS)
    imported.put("text.max_answer_tokens", int(limit), "model.max_txt_len")
    end_symbol = theirs.pop("model.end_sym", STAGE1_END_SYMBOL)
    prompt = theirs.pop("model.prompt_template", "")
    prompt_path = theirs.pop("model.prompt_path", None)
    ckpt = theirs.pop("model.ckpt", None)
    if _is_given(ckpt):
        imported.put("model.projector", str(ckpt), "model.ckpt")
    elif ckpt:
        imported.left_out["model.ckpt"] = "a placeholder: set model.projector, or use --after RUN"
    precision = theirs.pop("model.vit_precision", "fp16")
    if precision == "fp32":
        imported.put("model.vision_precision", "fp32", "model.vit_precision")
    elif precision == "fp16":
        imported.left_out["model.vit_precision"] = "model.precision is the whole model's, 16 bits"
    else:
        faults.append(f"model.vit_precision is {precision!r}: fp16 or fp32")
    if stage == 1:
        if end_symbol != STAGE1_END_SYMBOL:
            imported.put("text.end_symbol", end_symbol, "model.end_sym")
        return
    known = next((t for t in TEMPLATES.values() if t.prompt == prompt), None)
    if known is not None:
        imported.put("text.template", known.name, "model.prompt_template")
    else:
        imported.put("text.prompt", prompt, "model.prompt_template")
    if known is None or known.end_symbol != end_symbol:
        imported.put("text.end_symbol", end_symbol, "model.end_sym")
    else:
        imported.left_out["model.end_sym"] = f"the end symbol of text.template {known.name}"
    _take_instructions(imported, faults, str(prompt_path), path)


def _take_instructions(imported: Imported, faults: list[str], prompt_path: str, path: Path) -> None:
    """The lines of the prompt file: the original looks for it from where it is started."""
    places = [Path(prompt_path), path.resolve().parent.parent / prompt_path]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        if Path(prompt_path).name == "alignment.txt":
            imported.left_out["model.prompt_path"] = "its four instructions are the default"
        else:
            faults.append(f"model.prompt_path {prompt_path} does not exist")
        return
    try:
        lines = [line for line in read_utf8(file).splitlines() if "<ImageHere>" in line]
    except NotUtf8 as error:
        faults.append(f"model.prompt_path {file} is {error}: save it as UTF-8")
        return
    wrong = [line for line in lines if not line.startswith(f"{IMAGE_TAG} ")]
    if wrong or not lines:
        faults.append(f"{file} has lines that do not begin with {IMAGE_TAG}: {wrong[:3]}")
    instructions = [line.removeprefix(f"{IMAGE_TAG} ") for line in lines]
    if tuple(instructions) == STAGE2_INSTRUCTIONS:
        imported.left_out["model.prompt_path"] = "its four instructions are the default"
    else:
        imported.put("text.instructions", instructions, "model.prompt_path")


def _take_datasets(
    imported: Imported,
    faults: list[str],
    theirs: dict[str, Any],
    stage: int,
    world: tuple[int, int],
) -> None:
    """Sources and batch sizes; ``world`` is GPUs, and batches per optimizer step."""
    names = list(dict.fromkeys(key.split(".")[1] for key in theirs if key.startswith("datasets.")))
    batch_sizes: dict[str, int] = {}
    ratios: dict[str, float] = {}
    sources: list[dict[str, Any]] = []
    for name in names:
        if name not in _STAGE_OF_DATASET:
            faults.append(
                f"datasets.{name}: not one of {', '.join(_STAGE_OF_DATASET)}; image-text pairs in "
                "tar shards can be given as data.sources"
            )
        elif _STAGE_OF_DATASET[name] != stage:
            faults.append(f"datasets.{name} belongs to stage {_STAGE_OF_DATASET[name]}")
        batch_sizes[name] = int(theirs.pop(f"datasets.{name}.batch_size", 0))
        ratios[name] = float(theirs.pop(f"datasets.{name}.sample_ratio", 1))
        source: dict[str, Any] = {"name": name}
        key = f"datasets.{name}.build_info.storage"
        storage = theirs.pop(key, None)
        if _is_given(storage):
            source["path"] = str(storage)
        else:
            imported.left_out[key] = f"not set: --set data.paths.{name}=DIR"
        sources.append(source)
        _take_processors(imported, faults, theirs, name)
    if not names or len(set(batch_sizes.values())) != 1 or 0 in batch_sizes.values():
        faults.append(f"datasets.*.batch_size must be there and one and the same: {batch_sizes}")
        return
    for source, weight in zip(sources, _whole(list(ratios.values())), strict=True):
        if len(sources) > 1:
            source["weight"] = weight
    imported.put("data.sources", sources, "datasets, with their sample_ratio")
    batch_size, (gpus, accum) = batch_sizes[names[0]], world
    original = f"datasets.*.batch_size, on {gpus} GPU{'s' if gpus > 1 else ''}"
    imported.put("train.micro_batch_size", batch_size, "datasets.*.batch_size")
    imported.put("train.global_batch_size", batch_size * gpus * accum, original)
    imported.put("launch.gpus", gpus, "not in the original's file")


def _take_processors(
    imported: Imported, faults: list[str], theirs: dict[str, Any], name: str
) -> None:
    """Images are resized and captions cleaned as these do; nothing else is."""
    only = {
        "vis_processor.train.name": ("blip2_image_train", "the only one here"),
        "text_processor.train.name": ("blip_caption", "stage 1 cleans so, stage 2 not at all"),
    }
    for leaf, (value, why) in only.items():
        key = f"datasets.{name}.{leaf}"
        given = theirs.pop(key, value)
        if given != value:
            faults.append(f"{key} is {given!r}: only {value} is known")
        else:
            imported.left_out[key] = why
    key = f"datasets.{name}.vis_processor.train.image_size"
    if theirs.pop(key, None) is not None:
        imported.left_out[key] = "the bundle says so"
    words = theirs.pop(f"datasets.{name}.text_processor.train.max_words", None)
    if words is not None:
        imported.put(
            "text.max_words", int(words), f"datasets.{name}.text_processor.train.max_words"
        )
    if theirs.pop(f"datasets.{name}.data_type", None) is not None:
        imported.left_out[f"datasets.{name}.data_type"] = "always images"


def _take_rest(imported: Imported, faults: list[str], theirs: dict[str, Any]) -> None:
    for key, value in theirs.items():
        if key.startswith("model.lora_") and value not in (0, None):
            faults.append(f"{key} is {value!r}: the original's MiniGPT-4 ignores it")
        else:
            imported.left_out[key] = "not a setting of the original's MiniGPT-4"


def _is_given(value: Any) -> bool:
    return bool(value) and not str(value).startswith(_PLACEHOLDERS)


def _whole(ratios: list[float]) -> list[int]:
    """The same proportions in the smallest whole numbers."""
    scaled = [round(ratio * 1000) for ratio in ratios]
    divisor = math.gcd(*scaled) or 1
    return [value // divisor for value in scaled]


def as_yaml(imported: Imported, source: str) -> str:
    """Our file: each setting with the original's key beside it, at the end what was left out."""
    lines = [
        f"# From {source}, which is a configuration of the original MiniGPT-4.",
        "# `faithful: true` would bring the original's quirks too: docs/fidelity.md lists them.",
    ]
    section = ""
    for key, value in sorted(imported.settings.items(), key=lambda item: _place(item[0])):
        parent, _, leaf = key.rpartition(".")
        if parent and parent != section:
            lines.append(f"{parent}:")
        section = parent
        text = yaml.safe_dump(value, default_flow_style=True, width=10**9).strip()
        text = text.removesuffix("...").strip()
        lines.append(f"{'  ' if parent else ''}{leaf}: {text}  # {imported.origins[key]}")
    if imported.left_out:
        lines.append("# Without a counterpart:")
        lines += [f"#   {key}: {why}" for key, why in imported.left_out.items()]
    return "\n".join(lines) + "\n"


def _place(key: str) -> tuple[int, str]:
    """Top-level settings first, then section by section."""
    order = ("", "model", "data", "text", "train", "launch")
    section = key.rpartition(".")[0]
    return order.index(section), "" if section else key

"""Faults of settings that are valid by themselves and contradict each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from mgpt4_hpc.config.original_quirks import ORIGINAL_VALUES, contradictions
from mgpt4_hpc.prompts import template_faults

if TYPE_CHECKING:
    from mgpt4_hpc.config.schema import ContainerConfig, LaunchConfig, RunConfig

_SECRET = re.compile(r"TOKEN(?!I)|SECRET|PASSW|CREDENTIAL|API_?KEY|PRIVATE_?KEY|ACCESS_?KEY", re.I)
"""Names of variables that hold secrets."""

_OWN_OPTIONS = {
    "array": "its tasks would take the one run from each other: --sweep makes a run for each",
    "chdir": "a checkout there would win over the code that the run was submitted with",
    "clusters": "`mgpt4 status` and `mgpt4 resume` would not find the job: submit on that cluster",
    "cpus-per-task": "set launch.cpus_per_gpu: one task each",
    "error": "`mgpt4 logs` would not find it",
    "gpus-per-node": "set launch.gpus, launch.nodes and launch.gpu_type",
    "job-name": "set name",
    "no-requeue": "the run could not come back: set launch.max_crashes and launch.max_timeouts",
    "nodes": "set launch.nodes",
    "ntasks": "set launch.gpus: one task each",
    "ntasks-per-node": "set launch.gpus and launch.nodes",
    "open-mode": "a requeued job would overwrite its log",
    "output": "`mgpt4 logs` would not find it",
    "signal": "set launch.signal_before_s",
    "time": "set launch.time_min",
    "wrap": "the job runs the trainer: launch.setup takes commands before it",
}
"""sbatch options that the launcher must decide, and why."""

_MAIL_TYPES = (
    "NONE", "BEGIN", "END", "FAIL", "REQUEUE", "ALL", "INVALID_DEPEND", "STAGE_OUT",
    "TIME_LIMIT", "TIME_LIMIT_90", "TIME_LIMIT_80", "TIME_LIMIT_50", "ARRAY_TASKS",
)  # fmt: skip
"""What sbatch takes as --mail-type (its manual, Slurm 22.05)."""


def consistency_faults(config: RunConfig) -> list[str]:
    """A sentence for each contradiction, with the settings' names and values."""
    return [
        *_text_faults(config),
        *_faithful_faults(config),
        *_model_faults(config),
        *_train_faults(config),
        *_launch_faults(config.launch, config.container),
        *_sbatch_faults(config.launch),
        *_source_faults(config),
    ]


def _text_faults(config: RunConfig) -> Iterator[str]:
    text = config.text
    if text.end_symbol == "":
        yield "text.end_symbol is empty: an answer would never end"
    if text.prompt is None:
        return
    yield from (f"text.prompt {fault}" for fault in template_faults(text.prompt))
    if config.stage == 2 and text.end_symbol is None:
        yield (
            "text.prompt is a format of your own, so text.end_symbol must say what ends an "
            "answer in it, as <|im_end|>"
        )


def _faithful_faults(config: RunConfig) -> Iterator[str]:
    if not config.faithful:
        return
    # A stored run may be older than a setting, and then did what its default does.
    given = (key for key in ORIGINAL_VALUES if _is_given(config, key))
    yield from contradictions({key: _setting(config, key) for key in given})
    if config.lora.rank:
        yield "lora.rank is set, but the original's MiniGPT-4 has no LoRA"


def _model_faults(config: RunConfig) -> Iterator[str]:
    if frozen := {"lm_head", "embed_tokens"} & set(config.lora.target_modules):
        yield f"lora.target_modules has {', '.join(sorted(frozen))}, which stay frozen"
    if config.model.shard_llm:
        # These need the language model whole.
        for key in ("lora.rank", "model.llm_8bit", "model.compile", "train.eval_suites"):
            if _setting(config, key):
                yield f"model.shard_llm does not work with {key}"


def _train_faults(config: RunConfig) -> Iterator[str]:
    train = config.train
    if train.min_lr > train.lr:
        yield f"train.min_lr {train.min_lr} is above train.lr {train.lr}"
    if train.warmup_steps > train.cosine_steps:
        limit = "max_steps" if train.lr_steps is None else "lr_steps"
        yield (
            f"train.warmup_steps {train.warmup_steps} is beyond train.{limit} "
            f"{train.cosine_steps}: the peak learning rate would never be reached"
        )
    if train.eval_every_steps and not config.data.val_fraction:
        yield "train.eval_every_steps needs data.val_fraction above 0"
    best = config.checkpoint.keep_best
    if best not in (None, "val/loss", *train.eval_suites):
        yield f"checkpoint.keep_best {best} is never asked: add it to train.eval_suites"
    if train.eval_every_steps:
        return
    for key in ("train.early_stop", "checkpoint.keep_best"):
        if _setting(config, key):
            yield f"{key} needs a held-out loss: set train.eval_every_steps"
    if train.eval_suites:
        yield "train.eval_suites are never asked: train.eval_every_steps is 0"


def _launch_faults(launch: LaunchConfig, container: ContainerConfig) -> Iterator[str]:
    if launch.gpus % launch.nodes:
        yield f"launch.gpus {launch.gpus} do not spread evenly over launch.nodes {launch.nodes}"
    if container.runtime != "none" and not container.image:
        yield f"container.image is not set, which {container.runtime} needs"
    if container.runtime == "none" and container.image:
        yield (
            "container.image is set, but container.runtime is none: set it to pyxis, apptainer "
            "or singularity"
        )
    if launch.gpu_type and launch.gpu_request == "none":
        yield "launch.gpu_type is set, but launch.gpu_request is none: it asks for no GPU"
    if launch.stage_env and container.runtime != "none":
        yield "launch.stage_env is set, but the environment is in container.image: leave it out"
    for name in filter(_SECRET.search, launch.env):
        yield (
            f"launch.env.{name} looks like a secret, and settings are written into the run's "
            "folder and the batch script: export it where you submit, a job inherits it"
        )


def _sbatch_faults(launch: LaunchConfig) -> Iterator[str]:
    for option in launch.sbatch:
        plain = option.lstrip("-").replace("_", "-")
        if plain == "gpus-per-node" and launch.gpu_request == "none":
            continue  # the user asks for GPUs with other options
        if reason := _OWN_OPTIONS.get(plain):
            yield f"launch.sbatch.{option} cannot be set: {reason}"
    types = launch.mail_type.split(",") if launch.mail_type else []
    if wrong := [word for word in types if word.upper() not in _MAIL_TYPES]:
        yield (f"launch.mail_type has {', '.join(map(repr, wrong))}: use {', '.join(_MAIL_TYPES)}")


def _source_faults(config: RunConfig) -> Iterator[str]:
    names = [source.name for source in config.data.sources]
    if len(set(names)) < len(names):
        yield f"data.sources has a name twice: {', '.join(names)}"


def _setting(config: RunConfig, key: str) -> Any:
    section, _, leaf = key.partition(".")
    return getattr(getattr(config, section), leaf)


def _is_given(config: RunConfig, key: str) -> bool:
    section, _, leaf = key.partition(".")
    return leaf in getattr(config, section).model_fields_set

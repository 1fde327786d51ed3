"""The original's train_configs come in key by key; nothing is lost in silence."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.original import import_original
from mgpt4_hpc.errors import ConfigError
from tests.unit.config.published import PROCESSORS, RUN, STAGE1

STAGE2 = {
    "model": {
        "arch": "minigpt4",
        "model_type": "pretrain_llama2",
        "max_txt_len": 160,
        "end_sym": "</s>",
        "prompt_path": "prompts/alignment.txt",
        "prompt_template": "[INST] {} [/INST] ",
        "ckpt": "/path/to/stage1/checkpoint/",
    },
    "datasets": {"cc_sbu_align": {"batch_size": 12, **PROCESSORS}},
    "run": RUN
    | {
        "init_lr": "3e-5",
        "min_lr": "1e-5",
        "max_epoch": 5,
        "iters_per_epoch": 200,
        "warmup_steps": 200,
        "job_name": "minigpt4_llama2_finetune",
    },
}

DECISIVE = {
    "train": {"max_steps", "lr", "min_lr", "warmup_start_lr", "warmup_steps", "weight_decay",
              "global_batch_size", "micro_batch_size", "beta1", "beta2", "eps"},
}  # fmt: skip


def write(path: Path, values: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def changed(values: dict, **changes) -> dict:
    """A deep copy with ``section__key=value`` changed."""
    new = copy.deepcopy(values)
    for key, value in changes.items():
        *parents, leaf = key.split("__")
        place = new
        for parent in parents:
            place = place[parent]
        place[leaf] = value
    return new


@pytest.mark.parametrize(
    ("values", "preset"), [(STAGE1, "stage1-vicuna7b"), (STAGE2, "stage2-llama2-7b")]
)
def test_the_published_files_are_our_presets(values: dict, preset: str, tmp_path: Path) -> None:
    theirs = load_config(write(tmp_path / "file.yaml", values)).config
    ours = load_config(preset).config
    assert theirs.train.model_dump(include=DECISIVE["train"]) == ours.train.model_dump(
        include=DECISIVE["train"]
    )
    for name in ("stage", "seed", "prompts", "end_symbol", "max_answer_tokens", "max_words"):
        assert getattr(theirs, name) == getattr(ours, name), name
    assert [(s.name, s.weight) for s in theirs.data.sources] == [
        (s.name, s.weight) for s in ours.data.sources
    ]
    assert theirs.launch.gpus == ours.launch.gpus
    assert theirs.data.num_workers == 4 and theirs.train.device == "cuda"


def test_every_key_is_used_or_named(tmp_path: Path) -> None:
    for values in (STAGE1, STAGE2):
        found = import_original(values, tmp_path / "file.yaml")
        told = " ".join(found.origins.values()) + " ".join(found.left_out)
        for section in ("model", "run"):
            for key in values[section]:
                assert f"{section}.{key}" in told, key


def test_the_global_batch_is_that_of_all_gpus(tmp_path: Path) -> None:
    path = write(tmp_path / "file.yaml", STAGE1)
    config = load_config(path, overrides={"launch.gpus": 8}).config
    assert (config.train.micro_batch_size, config.train.global_batch_size) == (64, 512)
    config = load_config(path, overrides={"train.global_batch_size": 128, "launch.gpus": 1}).config
    assert (config.train.micro_batch_size, config.train.global_batch_size) == (64, 128)


def test_paths_come_from_the_checkout_around_it(tmp_path: Path) -> None:
    path = write(tmp_path / "train_configs" / "s1.yaml", STAGE1)
    configs = tmp_path / "minigpt4" / "configs"
    info = {"data_type": "images", "build_info": {"storage": "/data/{00000..00009}.tar"}}
    write(configs / "datasets" / "laion" / "defaults.yaml", {"datasets": {"laion": info}})
    config = load_config(path).config
    assert [s.path for s in config.data.sources] == ["/data/{00000..00009}.tar", ""]


def test_instructions_and_formats_of_ones_own(tmp_path: Path) -> None:
    values = changed(
        STAGE2,
        model__prompt_path="mine.txt",
        model__prompt_template="Q: {} A: ",
        model__end_sym="#",
    )
    path = write(tmp_path / "train_configs" / "s2.yaml", values)
    with pytest.raises(ConfigError, match=r"mine\.txt does not exist"):
        load_config(path)
    (tmp_path / "mine.txt").write_text("<Img><ImageHere></Img> What?\nignored\n")
    config = load_config(path).config
    assert config.prompts == ("Q: <Img><ImageHere></Img> What? A: ",) and config.end_symbol == "#"
    values = changed(values, model__ckpt="/runs/checkpoint_4.pth")
    config = load_config(write(path, values)).config
    assert config.model.projector == "/runs/checkpoint_4.pth"


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    values = changed(STAGE1, run__accum_grad_iters=2)
    train = load_config(write(tmp_path / "file.yaml", values)).config.train
    assert (train.global_batch_size, train.max_steps, train.warmup_steps) == (512, 10_000, 2500)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"model__arch": "minigpt_v2"}, "another model than MiniGPT-4"),
        ({"model__freeze_vit": False}, "model.freeze_vit is False: only the projector"),
        ({"run__lr_sched": "linear_warmup_step_lr"}, "run.lr_sched is 'linear_warmup_step_lr'"),
        ({"run__init_lr": "fast"}, "run.init_lr is 'fast', which is no number"),
        ({"run__warmup_steps": 6000}, "repeat its warm-up in each epoch"),
        ({"datasets__coco_caption": {"batch_size": 64}}, "datasets.coco_caption: not one of"),
        ({"datasets__laion__batch_size": 32}, "one and the same"),
        ({"model__prompt_path": "prompts/alignment.txt"}, "datasets.laion belongs to stage 1"),
    ],
)
def test_what_would_be_another_run_is_refused(changes: dict, told: str, tmp_path: Path) -> None:
    path = write(tmp_path / "file.yaml", changed(STAGE1, **changes))
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert told in str(caught.value)


def test_all_faults_at_once(tmp_path: Path) -> None:
    values = changed(STAGE1, model__freeze_vit=False, run__evaluate=True)
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path / "file.yaml", values))
    assert len(caught.value.faults) == 2

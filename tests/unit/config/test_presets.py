"""Every preset loads, says what it stands for, and is a model of the right size."""

from __future__ import annotations

from functools import cache

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.missing_inputs import unset_paths
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.model.conversion.variants import VARIANTS
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4
from mgpt4_hpc.resources import configs_dir, preset_names
from tests.support.planned_model import plan_model

TRAINABLE = {"vicuna7b": 3_149_824, "vicuna13b": 3_937_280, "llama2-7b": 23_072_768}
PRESETS = [name for name in preset_names() if name.startswith("stage")]


def load(name: str) -> RunConfig:
    return load_config(name).config


@cache
def planned(variant: str) -> MiniGPT4:
    found = VARIANTS[variant]
    return plan_model(found.architecture, found.llm_config)


def test_every_stage_of_every_model_has_its_presets() -> None:
    wanted = {f"stage{stage}-{variant}" for stage in (1, 2) for variant in TRAINABLE}
    wanted |= {f"stage2-{variant}-paper" for variant in TRAINABLE}
    assert set(PRESETS) == wanted | {"stage1-quick-vicuna7b", "stage3-instruct-vicuna7b"}


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_full_size_on_the_meta_device(name: str) -> None:
    config = load(name)
    model = planned(config.model.variant)
    assert {p.device.type for p in model.parameters()} == {"meta"}
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trainable == TRAINABLE[config.model.variant]
    assert config.name == name and config.model.variant in name


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("stage1")])
def test_stage_1_is_the_original_s(name: str) -> None:
    config = load(name)
    train = config.train
    assert (train.lr, train.min_lr, train.warmup_start_lr) == (1e-4, 8e-5, 1e-6)
    assert (train.max_steps, train.warmup_steps) == (6000 if "quick" in name else 20_000, 5000)
    assert (train.global_batch_size, train.micro_batch_size, config.launch.gpus) == (256, 64, 4)
    assert {s.name: s.weight for s in config.data.sources} == {"laion": 115, "cc_sbu": 14}
    assert (config.max_answer_tokens, config.max_words, config.end_symbol) == (32, 50, "\n")
    assert config.prompts == ()
    assert_common(config)


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("stage2")])
def test_stage_2_is_the_original_s(name: str) -> None:
    config = load(name)
    train = config.train
    assert (train.lr, train.min_lr, train.warmup_start_lr) == (3e-5, 1e-5, 1e-6)
    assert (train.max_steps, train.warmup_steps) == (400 if "paper" in name else 1000, 200)
    assert (train.global_batch_size, train.micro_batch_size, config.launch.gpus) == (12, 12, 1)
    assert [s.name for s in config.data.sources] == ["cc_sbu_align"]
    assert (config.max_answer_tokens, config.max_words, len(config.prompts)) == (160, None, 4)
    start, end = ("[INST] <Img>", "</s>") if "llama2" in name else ("###Human: <Img>", "###")
    assert config.prompts[0].startswith(start) and config.end_symbol == end
    assert_common(config)


def assert_common(config: RunConfig) -> None:
    train = config.train
    assert (train.beta1, train.beta2, train.eps) == (0.9, 0.999, 1e-8)
    assert (train.weight_decay, train.max_grad_norm, config.seed) == (0.05, 0.0, 42)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_what_it_is_and_what_it_leaves_to_the_site(name: str) -> None:
    text = (configs_dir() / f"{name}.yaml").read_text(encoding="utf-8")
    assert text.startswith(f"# Stage {name[5]} ")
    sources = [source.name for source in load(name).data.sources]
    faults = unset_paths(load(name))
    assert len(faults) == 1 + len(sources) and "model.weights" in faults[0]
    for source, fault in zip(sources, faults[1:], strict=True):
        assert f"--set data.paths.{source}=DIR" in fault and f"data.paths.{source}" in text


def test_a_site_fills_in_the_paths(tmp_path) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(
        "model: {weights: /shared/bundle}\n"
        "data: {paths: {laion: /shared/laion, cc_sbu: /shared/cc, other: /shared/other}}\n"
    )
    overrides = {"data.paths.cc_sbu": "/mine"}
    resolved = load_config("stage1-vicuna7b", overrides=overrides, site=site)
    assert unset_paths(resolved.config) == []
    assert [s.path for s in resolved.config.data.sources] == ["/shared/laion", "/mine"]
    assert resolved.origin("data.paths") == "flag, site site"
    site.write_text(site.read_text().replace("other: /shared/other", "x: /y"))
    same = load_config("stage1-vicuna7b", overrides=overrides, site=site)
    assert same.digest == resolved.digest, "a path that nobody reads decides nothing"

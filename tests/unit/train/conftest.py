"""The reference models behind the trainer's own step, looking at the reference's own images."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from mgpt4_hpc.chat_format import TemplateFormat
from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.config.schema import RunConfig, TrainConfig
from mgpt4_hpc.data.batching.batch import Batch, collate
from mgpt4_hpc.data.batching.text import TextSpec
from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle.bundle import Bundle, open_bundle
from mgpt4_hpc.model.llm_files.tokenizer import load_tokenizer
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4, ModelOptions, build_model
from mgpt4_hpc.prompts import TEMPLATES
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.train.optimizer import build_optimizer
from mgpt4_hpc.train.schedule import WarmupCosine
from mgpt4_hpc.train.step import StepOptions, TrainStep
from tests.support.layout import sequence_of
from tests.support.tiny_world import TinyWorld

REFERENCE = Path(__file__).parents[2] / "reference"


class GivenImages:
    """A model that sees the reference's normalised pixels, whatever it is shown."""

    def __init__(self, model: MiniGPT4, pixels_NCHW: torch.Tensor) -> None:
        self.model, self.pixels_NCHW = model, pixels_NCHW
        self.add_to_loss = 0.0

    def answer_loss(self, pixels: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        seen = self.pixels_NCHW[: len(pixels)]
        return self.model.answer_loss(seen, *args, **kwargs) + self.add_to_loss


@dataclass
class Trainable:
    """A reference folder, ready to be trained on its one batch."""

    bundle: Bundle
    expected: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    def batch(self, stage: str, rows: slice = slice(None)) -> Batch:
        tokenizer, arch = load_tokenizer(self.bundle.llm_dir), self.bundle.architecture
        spec = TextSpec(
            encode=tokenizer.encode,
            bos_id=tokenizer.bos_id,
            pad_id=tokenizer.pad_id,
            num_image_tokens=arch.num_image_tokens,
            max_answer_tokens=self.expected[f"{stage}.max_text_tokens"],
            end_symbol=self.expected[f"{stage}.end_symbol"],
            chat_format=TemplateFormat(TEMPLATES["vicuna_v0"], tokenizer.encode, tokenizer.bos_id),
            keep_end_symbol=False,
        )
        answers = self.expected[f"{stage}.answers"]
        prompts = self.expected.get(f"{stage}.prompts") or repeat(None)
        sequences = [sequence_of(spec, a, p) for a, p in zip(answers, prompts, strict=False)]
        sequences = sequences[rows]
        count = len(sequences)
        blank = np.zeros((count, 3, arch.image_size, arch.image_size), dtype=np.uint8)
        keys = [str(number) for number in range(count)]
        return collate(blank, sequences, spec.pad_id, keys=keys, positions=range(count))

    def step(self, stage: str, precision: str = "fp32", **settings: Any) -> TrainStep:
        model = build_model(self.bundle, ModelOptions(precision=precision))
        seen: Any = GivenImages(model, self.tensors[f"{stage}.images"])
        schedule = self.expected[f"{stage}.schedule"]
        config = TrainConfig(
            global_batch_size=1,
            micro_batch_size=1,
            max_steps=schedule["max_epoch"] * schedule["iters_per_epoch"],
            lr=schedule["init_lr"],
            min_lr=schedule["min_lr"],
            warmup_start_lr=schedule["warmup_start_lr"],
            warmup_steps=schedule["warmup_steps"],
        )
        return TrainStep(
            seen,
            model.llama_proj,
            build_optimizer(model.llama_proj, config),
            WarmupCosine.from_config(config),
            StepOptions(fp16=precision == "fp16", **settings),
            device=torch.device("cpu"),
        )


def open_trainable(name: str) -> Trainable:
    folder = REFERENCE / name
    expected = json.loads((folder / "expected.json").read_text())
    bundle = open_bundle(folder, architecture=Architecture.from_dict(expected["architecture"]))
    return Trainable(bundle, expected, load_file(folder / "expected.safetensors"))


@pytest.fixture(scope="session", params=["vicuna_tiny", "llama2_tiny"])
def trainable(request: pytest.FixtureRequest) -> Trainable:
    """Each reference folder."""
    return open_trainable(request.param)


@pytest.fixture(scope="session")
def vicuna() -> Trainable:
    return open_trainable("vicuna_tiny")


@pytest.fixture
def config() -> RunConfig:
    """Settings for the CPU of this process alone."""
    overrides = {"train.device": "cpu", "data.num_workers": 0}
    return load_config("stage1-vicuna7b", overrides=overrides).config


@pytest.fixture
def run(tiny_world: TinyWorld, tmp_path: Path) -> RunDir:
    """A run of 400 steps that saves after each."""
    file = tiny_world.write_config(
        tmp_path / "x.yaml", train__max_steps=400, train__save_every_s=0.001, data__num_workers=0
    )
    made = RunDir(tmp_path / "run")
    made.create({"name": "run", "stage": 1})
    write_config(made.config_file, load_config(file))
    return made

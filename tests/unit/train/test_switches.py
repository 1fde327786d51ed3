"""Each quirk of the original, both ways, from the setting to what it changes.

``train.loss_reduction`` has its test in test_step.py.
"""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.data.batching.batch_builder import BatchMaker, InstructionChoice
from mgpt4_hpc.data.batching.text import NO_LABEL, TextSpec, build_sequence
from mgpt4_hpc.data.images.decode import decode_image
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.model.llm_files.tokenizer import load_tokenizer
from mgpt4_hpc.model.nn.minigpt4 import ModelOptions, build_model
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.train.inputs.loaders import text_spec
from mgpt4_hpc.train.run import run_training
from mgpt4_hpc.train.state import Ending
from mgpt4_hpc.train.stopping.stop import NeverStop
from tests.support.runs import curve
from tests.support.tiny_world import TinyWorld
from tests.unit.train.conftest import Trainable

FAITHFUL = {"faithful": True}


def config_of(stage: int = 2, **settings: Any) -> RunConfig:
    overrides = {key.replace("__", "."): value for key, value in settings.items()}
    return load_config(f"stage{stage}-vicuna7b", overrides=overrides).config


def spec_of(trainable: Trainable, stage: int = 2, **settings: Any) -> TextSpec:
    tokenizer = load_tokenizer(trainable.bundle.llm_dir)
    return text_spec(config_of(stage, **settings), tokenizer, trainable.bundle)


@pytest.mark.parametrize(("faithful", "kept"), [(False, True), (True, False)])
def test_a_truncated_answer_keeps_or_loses_its_end(vicuna, faithful: bool, kept: bool) -> None:
    spec = spec_of(vicuna, text__max_answer_tokens=16, faithful=faithful)
    sequence = build_sequence(spec, "word " * 50, spec.instructions[0])
    learned = sequence.labels[sequence.labels != NO_LABEL].tolist()
    assert len(learned) == 16
    end = spec.encode("word###")[len(spec.encode("word")) :]
    assert (learned[-len(end) :] == end) == kept
    short = build_sequence(spec, "word", spec.instructions[0])
    assert short.labels[-len(end) :].tolist() == end, "a short answer always has it"


@pytest.mark.parametrize(("faithful", "learned"), [(False, True), (True, False)])
def test_a_padding_token_in_a_caption(vicuna, faithful: bool, learned: bool) -> None:
    spec = spec_of(vicuna, faithful=faithful)
    # The tiny vocabulary has no `$$`; any token of a caption can stand for it.
    spec = dataclasses.replace(spec, pad_id=spec.encode("the red dog")[1])
    sequence = build_sequence(spec, "the red dog", spec.instructions[0])
    answer = spec.encode("the red dog###")
    assert sequence.input_ids[-len(answer) :].tolist() == answer, "it is read in any case"
    wanted = [NO_LABEL if token == spec.pad_id and not learned else token for token in answer]
    assert sequence.labels[-len(answer) :].tolist() == wanted


@pytest.mark.parametrize(("faithful", "one"), [(False, False), (True, True)])
def test_a_prompt_per_sample_or_per_batch(vicuna, faithful: bool, one: bool) -> None:
    spec = spec_of(vicuna, faithful=faithful)
    nothing: Any = None
    maker = BatchMaker(
        nothing,
        nothing,
        spec,
        56,
        instructions=InstructionChoice(seed=1, samples_per_step=32),
        resize="squash",
    )
    drawn = [{maker.instruction_at(step * 32 + i) for i in range(32)} for step in range(8)]
    assert all(len(prompts) == (1 if one else 4) for prompts in drawn)
    assert len(set.union(*drawn)) > 1


@pytest.mark.parametrize(("resize", "whites"), [("squash", 0), ("border", 2 * 14 * 56)])
def test_images_are_squashed_or_letterboxed(resize: str, whites: int) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (100, 50), (200, 0, 0)).save(stream, "PNG")
    chosen = config_of(data__resize=resize).data.resize
    pixels_CHW = decode_image(stream.getvalue(), 56, chosen)
    white_HW = (pixels_CHW == 255).all(axis=0)
    assert white_HW.sum() == whites
    assert np.abs(pixels_CHW[0][~white_HW].astype(int) - 200).max() <= 1
    assert config_of(**FAITHFUL).data.resize == "squash"


@pytest.mark.parametrize("vision", ["same", "fp16", "fp32"])
def test_the_vision_side_has_a_precision_of_its_own(trainable, vision: str) -> None:
    model = build_model(trainable.bundle, ModelOptions(precision="bf16", vision_precision=vision))
    dtype = {"same": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[vision]
    block = model.vision.get_submodule("blocks.1")
    residual, product = [], []
    block.register_forward_hook(lambda _m, _i, out: residual.append(out.dtype))
    block.get_submodule("mlp.fc1").register_forward_hook(
        lambda _m, _i, out: product.append(out.dtype)
    )
    features = model.encode_images(trainable.tensors["stage1.images"])
    assert (residual, product) == ([torch.float32], [dtype]), "residuals stay in float32"
    assert model.project(features).dtype == torch.bfloat16
    ours = model.project(features).float()
    theirs = trainable.tensors["stage1.image_embeds"]
    assert (ours - theirs).norm() / theirs.norm() < 0.02


def test_faithful_precision_is_fp16_all_through() -> None:
    model = config_of(**FAITHFUL).model
    assert (model.precision, model.vision_precision) == ("fp16", "fp16")


@pytest.mark.slow
def test_a_faithful_run_trains(tiny_world: TinyWorld, tmp_path: Path) -> None:
    settings = tiny_world.config(2, data__num_workers=0, train__max_steps=4)
    settings["model"]["precision"] = "fp16"
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump(settings | {"faithful": True}))
    run = RunDir(tmp_path / "run")
    run.create({"name": "run", "stage": 2})
    write_config(run.config_file, load_config(file))
    assert run_training(run, Ranks(), NeverStop(), claim={}).ending is Ending.FINISHED
    assert len(curve(run.path)) == 4
    assert "  loss_reduction: rank_mean  # faithful\n" in run.config_file.read_text()

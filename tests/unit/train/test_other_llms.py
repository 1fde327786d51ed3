"""Other language models, with their own tokens and conversation format, through the whole trainer.

Random models in the style of Llama 3 and of Qwen: byte-level tokenizers with special tokens in the
prompt; Llama 3 begins every text with a token of its own, Qwen has none for that.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from mgpt4_hpc.config.load import Resolved, load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.model.generation.generate import generate
from mgpt4_hpc.model.lazy import quiet_transformers
from mgpt4_hpc.model.llm_files.tokenizer import load_tokenizer
from mgpt4_hpc.model.nn.minigpt4 import build_model
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.train.inputs.loaders import text_spec
from mgpt4_hpc.train.run import run_training
from mgpt4_hpc.train.state import Ending
from mgpt4_hpc.train.stopping.stop import NeverStop
from tests.support.runs import curve
from tests.support.tiny_world import WORDS, TinyWorld

VOCABULARY = 512


@dataclass(frozen=True)
class Family:
    """What one family of language models brings along."""

    template: str
    model_type: str
    sizes: dict
    specials: tuple[str, ...]
    bos: str | None
    eos: str
    prompt: str


FAMILIES = {
    "llama3": Family(
        "llama3",
        "llama",
        {
            "num_key_value_heads": 2,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 128,
            },
        },
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "<|begin_of_text|>",
        "<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
    ),
    "qwen": Family(
        "qwen",
        "qwen3",
        {"num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True},
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        None,
        "<|im_end|>",
        "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    ),
}


def write_llm(folder: Path, family: Family) -> None:
    """A random model and a byte-level tokenizer in Hugging Face layout."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 8,
        special_tokens=list(family.specials),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 8, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=family.bos,
        eos_token=family.eos,
        pad_token=family.specials[0] if family.bos is None else None,
    )
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        family.model_type,
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        eos_token_id=fast.eos_token_id,
        bos_token_id=fast.bos_token_id,
        **family.sizes,
    )
    with quiet_transformers():
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)


def make_run(
    world: TinyWorld, tmp_path: Path, family: Family, stage: int
) -> tuple[RunDir, Resolved]:
    weights = tmp_path / "weights"
    shutil.copytree(world.weights, weights, ignore=shutil.ignore_patterns("llm"))
    write_llm(weights / "llm", family)
    text = {"template": family.template, "end_symbol": family.eos, "max_answer_tokens": 24}
    config = world.write_config(
        tmp_path / "run.yaml", stage, text=text, data__num_workers=0, train__lr=0.03
    )
    overrides = {"model.weights": str(weights)}
    if stage == 2:
        overrides["model.projector"] = None
    resolved = load_config(config, overrides=overrides)
    run = RunDir(tmp_path / "run")
    run.create({"name": "run", "stage": stage})
    write_config(run.config_file, resolved)
    return run, resolved


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("name", list(FAMILIES))
def test_trains_and_generates(name: str, stage: int, tiny_world: TinyWorld, tmp_path: Path) -> None:
    family = FAMILIES[name]
    run, resolved = make_run(tiny_world, tmp_path, family, stage)
    outcome = run_training(run, Ranks(), NeverStop(), claim={})
    assert outcome.ending is Ending.FINISHED
    losses = [loss for _, loss in curve(run.path)]
    assert len(losses) == 12 and all(map(math.isfinite, losses))
    assert sum(losses[-3:]) < sum(losses[:3])

    bundle = open_bundle(resolved.config.model.weights)
    model, tokenizer = build_model(bundle), load_tokenizer(bundle.llm_dir)
    newest = max(run.checkpoints.glob("step-*")) / "projector.safetensors"
    trained = {k.removeprefix("llama_proj."): t for k, t in load_file(newest).items()}
    assert not torch.equal(trained["weight"], model.llama_proj.weight)
    model.llama_proj.load_state_dict(trained)
    size = bundle.architecture.image_size
    images = torch.zeros(2, 3, size, size, dtype=torch.uint8)
    prompts = list(resolved.config.prompts[:2]) or ["", ""]
    answers = generate(
        model, tokenizer, images, prompts, max_new_tokens=6, stop=resolved.config.end_symbol
    )
    assert all(answer.token_ids and family.eos not in answer.text for answer in answers)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_special_tokens_of_the_format_are_tokens(
    name: str, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    family = FAMILIES[name]
    _, resolved = make_run(tiny_world, tmp_path, family, 2)
    bundle = open_bundle(resolved.config.model.weights)
    tokenizer = load_tokenizer(bundle.llm_dir)
    spec = text_spec(resolved.config, tokenizer, bundle)
    config = json.loads((bundle.llm_dir / "config.json").read_text())
    assert spec.encode(family.eos) == [config["eos_token_id"]] == [tokenizer.eos_id]
    assert tokenizer.decode([tokenizer.eos_id]) == family.eos
    begin = spec.encode(family.bos) if family.bos else [tokenizer.eos_id]
    assert [spec.bos_id] == begin, "without a token to begin with, the end token begins"
    assert resolved.config.prompts[0].startswith(family.prompt.split("{}")[0])
    assert len(spec.encode(family.specials[1])) == 1

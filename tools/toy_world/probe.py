"""What a user's two stages reach on a built toy world: a short, independent re-implementation.

It reads the product's files back, trains the projection alone with stage 1's and stage 2's exact
token sequences, and scores greedy answers for the held-out scenes. The frozen towers' outputs are
computed once here (no stage augments images); the real trainer computes them at every step.

Legend of shapes: B batch, I image tokens, Q Q-Former width, T tokens, D language width, N samples.
"""

from __future__ import annotations

import io
import json
import math
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from mgpt4_hpc.evaluation.scenes import load_scenes, score_scenes
from toy_world.captions import clean
from toy_world.documents import AFTER_IMAGE, BEFORE_IMAGE, BOS, STOP
from toy_world.export import original_qformer_name
from toy_world.llm import IGNORE, PAD, answer_loss
from toy_world.towers import Towers, decode

SOURCE_SHARES = {"laion": 115, "cc_sbu": 14}
MAX_NEW_TOKENS = 80


@dataclass(frozen=True)
class StageSettings:
    """A stage's optimizer steps, batch and learning rates (linear warm-up, unshifted cosine)."""

    steps: int
    batch: int
    peak_lr: float
    min_lr: float
    warmup_steps: int
    max_text_tokens: int


STAGE1 = StageSettings(350, 32, 4e-3, 4e-4, 35, 32)
STAGE2 = StageSettings(200, 16, 2e-3, 2e-4, 20, 160)


@dataclass
class World:
    """The product, loaded: frozen models, features and texts."""

    towers: Towers
    llm: LlamaForCausalLM
    tokenizer: SentencePieceProcessor
    features: dict[str, Tensor]  # per source [N, I, Q]
    texts: dict[str, list[str]]
    scenes: list[dict[str, Any]]


def read_towers(weights: Path) -> Towers:
    """Load the original-format files back into timm and transformers, strictly."""
    towers = Towers()
    vision = torch.load(weights / "eva_vit_g.pth", weights_only=True)
    towers.visual_encoder.load_state_dict(
        {name: vision[name].float() for name in towers.visual_encoder.state_dict()}
    )
    rest = torch.load(weights / "blip2_pretrained_flant5xxl.pth", weights_only=True)["model"]
    towers.ln_vision.load_state_dict(
        {name: rest[f"ln_vision.{name}"].float() for name in ("weight", "bias")}
    )
    towers.qformer.load_state_dict(
        {n: rest[original_qformer_name(n)].float() for n in towers.qformer.state_dict()}
    )
    towers.query_tokens_1QD.data = rest["query_tokens"].float()
    return towers.eval().requires_grad_(False)


def read_llm(folder: Path) -> LlamaForCausalLM:
    """The language model in float32."""
    llm = LlamaForCausalLM(LlamaConfig.from_json_file(str(folder / "config.json")))
    llm.load_state_dict({n: v.float() for n, v in load_file(folder / "model.safetensors").items()})
    return llm.float().eval().requires_grad_(False)


def _read_shards(folder: Path) -> tuple[list[bytes], list[str]]:
    jpegs, texts = [], []
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(fileobj=io.BytesIO(shard.read_bytes())) as tar:
            for member in tar:
                payload = tar.extractfile(member)
                assert payload is not None
                if member.name.endswith(".jpg"):
                    jpegs.append(payload.read())
                elif member.name.endswith(".txt"):
                    texts.append(payload.read().decode())
    return jpegs, texts


def load_world(root: Path) -> World:
    """Read the product and compute the frozen features."""
    jpegs: dict[str, list[bytes]] = {}
    texts: dict[str, list[str]] = {}
    for source in SOURCE_SHARES:
        jpegs[source], raw = _read_shards(root / "shards" / source)
        texts[source] = [clean(text) for text in raw]
    pairs = json.loads((root / "cc_sbu_align/filter_cap.json").read_text())["annotations"]
    images = root / "cc_sbu_align/image"
    jpegs["align"] = [(images / f"{pair['image_id']}.jpg").read_bytes() for pair in pairs]
    texts["align"] = [pair["caption"] for pair in pairs]
    scenes = load_scenes(root / "heldout/scenes.json")
    jpegs["heldout"] = [(root / "heldout/image" / s["image"]).read_bytes() for s in scenes]
    towers = read_towers(root / "weights")
    with torch.no_grad():
        features = {name: towers(decode(found))[0] for name, found in jpegs.items()}
    llm = read_llm(root / "weights/llm")
    tokenizer = SentencePieceProcessor(model_file=str(root / "weights/llm/tokenizer.model"))
    return World(towers, llm, tokenizer, features, texts, scenes)


def new_projection(world: World, seed: int) -> nn.Linear:
    """`llama_proj` with PyTorch's default initialisation."""
    torch.manual_seed(seed)
    return nn.Linear(world.features["align"].shape[-1], world.llm.config.hidden_size)


def learning_rate(step: int, stage: StageSettings, warmup_start_lr: float = 1e-6) -> float:
    """Linear warm-up, then a cosine over all steps that the warm-up does not shift."""
    if step < stage.warmup_steps:
        return warmup_start_lr + (stage.peak_lr - warmup_start_lr) * step / stage.warmup_steps
    cosine = 0.5 * (1.0 + math.cos(math.pi * step / stage.steps))
    return stage.min_lr + (stage.peak_lr - stage.min_lr) * cosine


def _assemble(
    world: World, before: list[int], image_BID: Tensor, after: list[int], answers: list[list[int]]
) -> tuple[Tensor, Tensor]:
    """Embeddings [B, T, D] and labels [B, T] of before + image + after + answer."""
    table = world.llm.model.embed_tokens
    longest = max(map(len, answers))
    answer_BT = torch.full((len(answers), longest), PAD)
    label_BT = torch.full((len(answers), longest), IGNORE)
    for row, ids in enumerate(answers):
        answer_BT[row, : len(ids)] = label_BT[row, : len(ids)] = torch.tensor(ids)
    count = len(answers)
    prefix = [table(torch.tensor(ids)).expand(count, -1, -1) for ids in (before, after) if ids]
    parts = [prefix[0], image_BID, *prefix[1:], table(answer_BT)]
    embeds_BTD = torch.cat(parts, dim=1)
    unlabelled = torch.full((count, embeds_BTD.shape[1] - longest), IGNORE)
    return embeds_BTD, torch.cat([unlabelled, label_BT], dim=1)


def _batches(
    world: World, stage: StageSettings, shares: dict[str, int], seed: int
) -> Iterator[list[tuple[str, int]]]:
    rng = np.random.default_rng(seed)
    left: dict[str, list[int]] = {name: [] for name in shares}
    names = list(shares)
    weights = np.array([shares[name] for name in names], dtype=float)
    for _ in range(stage.steps):
        batch = []
        for choice in rng.choice(len(names), size=stage.batch, p=weights / weights.sum()):
            name = names[choice]
            if not left[name]:
                left[name] = rng.permutation(len(world.texts[name])).tolist()
            batch.append((name, left[name].pop()))
        yield batch


def train_stage(
    world: World,
    projection: nn.Linear,
    number: int,
    stage: StageSettings,
    seed: int,
    log: Callable[[str], None] = print,
) -> float:
    """Train `projection` in place with stage `number`'s sequences; returns the last mean loss."""
    optimizer = torch.optim.AdamW(
        [
            {"params": [projection.weight], "weight_decay": 0.05},
            {"params": [projection.bias], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.999),
    )
    encode = world.tokenizer.encode
    end = "\n" if number == 1 else STOP
    shares = SOURCE_SHARES if number == 1 else {"align": 1}
    rng = np.random.default_rng(seed + 1)
    began, losses = time.monotonic(), []
    for step, batch in enumerate(_batches(world, stage, shares, seed)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, stage)
        before, after = [BOS], []
        if number == 2:
            before = [BOS, *encode(BEFORE_IMAGE)]
            after = encode(AFTER_IMAGE[rng.integers(len(AFTER_IMAGE))])
        answers = [encode(world.texts[n][i] + end)[: stage.max_text_tokens] for n, i in batch]
        image_BID = projection(torch.stack([world.features[n][i] for n, i in batch]))
        embeds_BTD, labels_BT = _assemble(world, before, image_BID, after, answers)
        loss = answer_loss(world.llm, embeds_BTD, labels_BT)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if step % 50 == 49:
            recent = sum(losses[-20:]) / 20
            log(
                f"stage {number} step {step + 1} loss {recent:.3f} {time.monotonic() - began:.0f} s"
            )
    return sum(losses[-20:]) / 20


@torch.no_grad()
def answer(world: World, projection: nn.Linear) -> list[tuple[str, bool]]:
    """Greedy prompted answers for the held-out scenes, each with "did it end with ###?"."""
    table, encode = world.llm.model.embed_tokens, world.tokenizer.encode
    image_BID = projection(world.features["heldout"])
    parts = [[BOS, *encode(BEFORE_IMAGE)], encode(AFTER_IMAGE[0])]
    before, after = (table(torch.tensor(ids)).expand(len(image_BID), -1, -1) for ids in parts)
    embeds_BTD = torch.cat([before, image_BID, after], dim=1)
    ids = world.llm.generate(
        inputs_embeds=embeds_BTD,
        attention_mask=torch.ones(embeds_BTD.shape[:2], dtype=torch.long),
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
    texts = [world.tokenizer.decode(row.tolist()) for row in ids]
    return [(text.split(STOP)[0].strip(), STOP in text) for text in texts]


def figures(world: World, projection: nn.Linear) -> dict[str, float]:
    """Shares of held-out answers that are right, incomplete, repetitive."""
    answers = answer(world, projection)
    return score_scenes(
        [text for text, _ in answers], world.scenes, [ended for _, ended in answers]
    )


def run(
    root: Path,
    seeds: tuple[int, ...] = (0, 1, 2),
    stage1: StageSettings = STAGE1,
    stage2: StageSettings = STAGE2,
    log: Callable[[str], None] = print,
) -> list[dict[str, dict[str, float]]]:
    """Both stages, and stage 2 alone, for several seeds."""
    world = load_world(root)
    results = []
    for seed in seeds:
        projection = new_projection(world, seed)
        train_stage(world, projection, 1, stage1, seed, log)
        result = {"stage 1": figures(world, projection)}
        train_stage(world, projection, 2, stage2, seed, log)
        result["stage 2"] = figures(world, projection)
        alone = new_projection(world, seed)
        train_stage(world, alone, 2, stage2, seed, log)
        result["stage 2 without stage 1"] = figures(world, alone)
        for name, shares in result.items():
            log(f"seed {seed} {name}: " + ", ".join(f"{k} {v:.2f}" for k, v in shares.items()))
        results.append(result)
    return results

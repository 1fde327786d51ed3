"""Pre-training of the language model, on text only.

Legend of shapes: B batch, T tokens, N keyword tokens, D language width, W words.

A document is 16 keywords and then a text about the same things; the loss is on the text alone. A
model that never had to look back at such words has no reason to look back at image tokens either.
The keywords' embeddings are scaled, blended and noised in training, so that the model later accepts
projected image features that lie only near a word. Both are engineered, and the README says so.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from sentencepiece import SentencePieceProcessor
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from toy_world.documents import STOP, VOCABULARY, Document, Writer
from toy_world.scenes import NUM_KEYWORDS, WORDS, Scene, keywords, stream
from toy_world.schedule import learning_rate
from toy_world.splits import heldout_scenes, training_scenes

IGNORE = -100
PAD = 3
EMBEDDING_STD = 0.3
BLEND_SHARE = 0.4
BLEND_MAX = 0.35
NOISE = 0.35
SCALE_SPREAD = 0.2


def new_model() -> LlamaForCausalLM:
    """An untrained LLaMA of the toy's size."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=128,
            intermediate_size=320,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=512,
            rms_norm_eps=1e-6,
            initializer_range=0.06,
            tie_word_embeddings=False,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
            use_cache=True,
        )
    )


def collate(documents: list[Document]) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids [B, T], labels [B, T] (-100 where nothing is learned), keyword mask [B, T]."""
    length = max(len(document.ids) for document in documents)
    ids_BT = torch.full((len(documents), length), PAD)
    labels_BT = torch.full_like(ids_BT, IGNORE)
    keyword_BT = torch.zeros_like(ids_BT, dtype=torch.bool)
    for row, document in enumerate(documents):
        ids = torch.tensor(document.ids)
        ids_BT[row, : len(ids)] = ids
        labels_BT[row, document.first_answer : len(ids)] = ids[document.first_answer :]
        keyword_BT[row, document.first_keyword : document.first_keyword + NUM_KEYWORDS] = True
    return ids_BT, labels_BT, keyword_BT


def answer_loss(model: LlamaForCausalLM, embeds_BTD: Tensor, labels_BT: Tensor) -> Tensor:
    """Mean cross-entropy over the labelled tokens; logits only where there is a label."""
    hidden_BTD = model.model(inputs_embeds=embeds_BTD).last_hidden_state[:, :-1]
    targets_BT = labels_BT[:, 1:]
    chosen_BT = targets_BT != IGNORE
    return cross_entropy(model.lm_head(hidden_BTD[chosen_BT]), targets_BT[chosen_BT])


def disturb(embeds_BTD: Tensor, keyword_BT: Tensor, words_WD: Tensor) -> Tensor:
    """Scale, blend (with one of `words_WD`) and noise the keywords' embeddings only."""
    chosen_ND = embeds_BTD[keyword_BT]
    count, width = chosen_ND.shape
    other_ND = words_WD[torch.randint(len(words_WD), (count,))]
    share_N1 = torch.rand(count, 1) * BLEND_MAX * (torch.rand(count, 1) < BLEND_SHARE)
    noise_ND = torch.randn(count, width) * torch.rand(count, 1)
    noise_ND *= NOISE * words_WD.detach().pow(2).mean().sqrt()
    scale_N1 = torch.exp(torch.randn(count, 1) * SCALE_SPREAD)
    mixed_ND = scale_N1 * ((1.0 - share_N1) * chosen_ND + share_N1 * other_ND) + noise_ND
    return embeds_BTD.masked_scatter(keyword_BT[:, :, None], mixed_ND)


@torch.no_grad()
def continuation_accuracy(
    model: LlamaForCausalLM, writer: Writer, scenes: Sequence[Scene], max_new_tokens: int = 80
) -> dict[str, float]:
    """Greedy answers to prompted capitalised keywords: main object right, and properly ended."""
    after = writer.after[0]
    rows = [
        [*writer.before, *(writer.upper[WORDS.index(w)] for w in keywords(scene)), *after]
        for scene in scenes
    ]
    ids = model.generate(
        input_ids=torch.tensor(rows),
        attention_mask=torch.ones(len(rows), len(rows[0]), dtype=torch.long),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    texts = [writer.tokenizer.decode(row[len(rows[0]) :].tolist()) for row in ids]
    right = [
        f"{scene.main.colour} {scene.main.shape}" in text.split(".")[0]
        for scene, text in zip(scenes, texts, strict=True)
    ]
    ended = [STOP in text for text in texts]
    return {"main": sum(right) / len(right), "ended": sum(ended) / len(ended)}


def pretrain(
    seed: int,
    tokenizer_file: Path,
    peak_lr: float = 2e-3,
    batch: int = 32,
    log: Callable[[str], None] = print,
) -> tuple[LlamaForCausalLM, dict[str, float]]:
    """Train the language model; returns it with its accuracy on the held-out scenes' keywords."""
    torch.manual_seed(seed)
    writer = Writer(SentencePieceProcessor(model_file=str(tokenizer_file)))
    model = new_model()
    table = model.model.embed_tokens.weight
    with torch.no_grad():
        # Case is one shared direction, so that a style is one shift for a linear projection.
        nn.init.normal_(table, std=EMBEDDING_STD)
        table[writer.upper] = table[writer.lower] + EMBEDDING_STD * torch.randn(table.shape[1])
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.02},
            {"params": [p for p in model.parameters() if p.dim() <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    rng = stream(seed, "llm/texts")
    scenes = training_scenes(seed, "llm")
    steps = len(scenes) // batch
    began = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak_lr)
        now = scenes[step * batch : (step + 1) * batch]
        ids_BT, labels_BT, keyword_BT = collate([writer.document(scene, rng) for scene in now])
        words_WD = model.model.embed_tokens(torch.tensor(writer.lower + writer.upper))
        embeds_BTD = disturb(model.model.embed_tokens(ids_BT), keyword_BT, words_WD)
        loss = answer_loss(model, embeds_BTD, labels_BT)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 100 == 99:
            log(f"llm step {step + 1} loss {loss.item():.3f} {time.monotonic() - began:.0f} s")
        if step % 500 == 499:
            log(f"  validation {continuation_accuracy(model, writer, scenes[-100:])}")
    figures = continuation_accuracy(model.eval(), writer, heldout_scenes(seed))
    log(f"  held out {figures}")
    return model, figures

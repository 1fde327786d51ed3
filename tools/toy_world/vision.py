"""Pre-training of the vision tower and the Q-Former on pictures of scenes.

Legend of shapes: B batch, Q queries, P patches, V vision width, D Q-Former width, H heads, d width
per head, C classes.

Each query is made to name one of the scene's 16 keywords. All queries share *one* linear head, so
that the same word looks alike in whichever query it appears: without that, no single linear
projection could translate queries into words. Two losses only help on the way and leave nothing
behind: each patch names the object it lies in, and each query's attention is drawn to the object
that it should name.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from toy_world.pictures import FIELDS, SHRINK, Labels, Pictures, make_pictures
from toy_world.scenes import WORDS
from toy_world.schedule import learning_rate
from toy_world.towers import ARCHITECTURE, Towers, enlarge, normalised

BACKGROUND_WEIGHT = 0.1
GAZE_WEIGHT = 0.3


class Heads(nn.Module):
    """Throw-away read-outs that exist during pre-training only."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Linear(int(ARCHITECTURE["qformer_width"]), len(WORDS))
        self.patch_sizes = [len(names) + 1 for names in FIELDS.values()]
        self.patches = nn.Linear(int(ARCHITECTURE["vision_width"]), sum(self.patch_sizes))

    def patch_loss(self, vision_BPV: Tensor, labels_B5P: Tensor) -> Tensor:
        """Mean over the five fields; patches without an object count a tenth."""
        logits = self.patches(vision_BPV[:, 1:]).split(self.patch_sizes, dim=-1)
        losses = []
        for logits_BPC, labels_BP in zip(logits, labels_B5P.unbind(1), strict=True):
            weight_C = torch.ones(logits_BPC.shape[-1])
            weight_C[0] = BACKGROUND_WEIGHT
            losses.append(
                cross_entropy(logits_BPC.flatten(0, 1), labels_BP.flatten(), weight=weight_C)
            )
        return torch.stack(losses).mean()


class Gaze:
    """Watches where the queries look: the cross-attention's queries and keys of each forward."""

    def __init__(self, towers: Towers) -> None:
        self.heads = int(ARCHITECTURE["qformer_heads"])
        self._seen: list[Tensor] = []
        for layer in towers.qformer.encoder.layer:
            if layer.has_cross_attention:
                attention = layer.crossattention.attention
                for linear in (attention.query, attention.key):
                    linear.register_forward_hook(self._remember)

    def _remember(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        if torch.is_grad_enabled():
            self._seen.append(output)

    def loss(self, target_BQP: Tensor) -> Tensor:
        """Minus log of the attention that falls on the target, mean over layers and heads."""
        losses = []
        for query_BQD, key_BPD in zip(self._seen[::2], self._seen[1::2], strict=True):
            query_BHQd, key_BHPd = (
                x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (query_BQD, key_BPD)
            )
            logits = query_BHQd @ key_BHPd.transpose(-1, -2) / query_BHQd.shape[-1] ** 0.5
            on_target = logits.masked_fill(~target_BQP[:, None], float("-inf")).logsumexp(-1)
            losses.append((logits.logsumexp(-1) - on_target).mean())
        self._seen.clear()
        return torch.stack(losses).mean()


@torch.no_grad()
def accuracy(towers: Towers, heads: Heads, pictures: Pictures) -> dict[str, float]:
    """Shares read right: whole scenes, whole objects (or their absence), and single words."""
    towers.eval()
    right = []
    for start in range(0, len(pictures), 64):
        out_BQD, _ = towers(normalised(pictures.pixels[start : start + 64]))
        right.append(heads.words(out_BQD).argmax(-1).numpy() == pictures.words[start : start + 64])
    towers.train()
    right_NQ = np.concatenate(right)
    return {
        "scenes": float(right_NQ.all(1).mean()),
        "objects": float(right_NQ[:, :15].reshape(-1, 3, 5).all(2).mean()),
        **{name: float(right_NQ[:, at:15:5].mean()) for at, name in enumerate(FIELDS)},
    }


def _losses(
    towers: Towers, heads: Heads, gaze: Gaze, pictures: Pictures, now: Labels
) -> dict[str, Tensor]:
    """The three losses on the pictures number `now`."""
    out_BQD, vision_BPV = towers(normalised(pictures.pixels[now]))
    words_BQ = torch.from_numpy(pictures.words[now])
    return {
        "words": cross_entropy(heads.words(out_BQD).flatten(0, 1), words_BQ.flatten()),
        "patches": heads.patch_loss(vision_BPV, torch.from_numpy(pictures.patches[now])),
        "gaze": gaze.loss(torch.from_numpy(pictures.gaze[now])),
    }


def pretrain(
    seed: int,
    steps: int = 1800,
    batch: int = 64,
    peak_lr: float = 1.5e-3,
    log: Callable[[str], None] = print,
) -> tuple[Towers, dict[str, float]]:
    """Train the towers; returns them with their accuracy on the held-out scenes."""
    torch.manual_seed(seed)
    pictures = make_pictures(seed, "vision")
    heldout = make_pictures(seed, "heldout")
    validation = make_pictures(seed, "vision validation")
    log(f"drew {len(pictures)} pictures")
    towers, heads = Towers(SHRINK), Heads()
    gaze = Gaze(towers)
    parameters = [*towers.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.dim() > 1], "weight_decay": 0.02},
            {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
        ],
        betas=(0.9, 0.98),
    )
    order = np.random.default_rng(seed)
    began = time.monotonic()
    chosen: Labels = np.empty(0, dtype=np.int64)
    for step in range(steps):
        if len(chosen) < batch:
            chosen = np.concatenate([chosen, order.permutation(len(pictures))])
        now, chosen = chosen[:batch], chosen[batch:]
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, peak_lr)
        losses = _losses(towers, heads, gaze, pictures, now)
        optimizer.zero_grad()
        (losses["words"] + losses["patches"] + GAZE_WEIGHT * losses["gaze"]).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 100 == 99:
            values = ", ".join(f"{name} {loss.item():.3f}" for name, loss in losses.items())
            log(f"vision step {step + 1} {time.monotonic() - began:.0f} s: {values}")
        if step % 500 == 499:
            log(f"  validation {accuracy(towers, heads, validation)}")
    figures = accuracy(towers, heads, heldout)
    log(f"  held out {figures}")
    return enlarge(towers, SHRINK), figures

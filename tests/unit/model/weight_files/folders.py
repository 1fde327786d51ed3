"""A copy of the reference folder."""

from __future__ import annotations

import torch

from mgpt4_hpc.model.bundle.writer import Sources


def sources_of(reference, **changes) -> Sources:
    qformer = reference.path / "blip2_pretrained_flant5xxl.pth"
    given = {
        "vit": reference.path / "eva_vit_g.pth",
        "qformer": qformer if qformer.exists() else None,
        "llm": reference.path / "llm",
        "projector": reference.path / "pretrained_minigpt4.pth",
        "architecture": reference.architecture,
    }
    return Sources(**(given | changes))


def same(ours: dict, theirs: dict) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)

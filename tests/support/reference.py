"""The reference folders, opened once, and batches made by hand from their texts.

The batches are built here, not by the data package, so that a fault in one room does not hide in
the other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mgpt4_hpc.model.architecture import Architecture
from mgpt4_hpc.model.bundle.bundle import Bundle, open_bundle
from mgpt4_hpc.model.bundle.writer import Sources, write_bundle
from mgpt4_hpc.model.llm_files.tokenizer import TextTokenizer, load_tokenizer
from mgpt4_hpc.model.nn.minigpt4 import MiniGPT4, build_model
from mgpt4_hpc.prompts import IMAGE_SLOT

REFERENCE = Path(__file__).parents[1] / "reference"
FOLDERS = ("vicuna_tiny", "llama2_tiny")


@dataclass
class Reference:
    """One reference folder with our model of it in float32."""

    path: Path
    expected: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    bundle: Bundle
    model: MiniGPT4
    tokenizer: TextTokenizer

    @property
    def architecture(self) -> Architecture:
        return Architecture.from_dict(self.expected["architecture"])

    def batch(self, stage: str) -> dict[str, torch.Tensor]:
        """The arguments of ``answer_loss`` for one stage."""
        rows = []
        num_slots = self.bundle.architecture.num_image_tokens
        for index, answer in enumerate(self.expected[f"{stage}.answers"]):
            prompt = self.expected["stage2.prompts"][index] if stage == "stage2" else ""
            before, _, after = prompt.partition(IMAGE_SLOT)
            encode = self.tokenizer.encode
            head = [self.tokenizer.bos_id, *(encode(before) if before else [])]
            tail = encode(after) if after else []
            limit = self.expected[f"{stage}.max_text_tokens"]
            target = encode(answer + self.expected[f"{stage}.end_symbol"])[:limit]
            rows.append((head, tail, target))
        length = max(len(h) + num_slots + len(t) + len(a) for h, t, a in rows)
        ids = torch.full((len(rows), length), self.tokenizer.pad_id)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        labels = torch.full(ids.shape, -100)
        for row, (head, tail, target) in enumerate(rows):
            start, end = len(head) + num_slots + len(tail), 0
            end = start + len(target)
            ids[row, : len(head)] = torch.tensor(head)
            mask[row, len(head) : len(head) + num_slots] = True
            ids[row, start - len(tail) : start] = torch.tensor(tail, dtype=torch.long)
            ids[row, start:end] = labels[row, start:end] = torch.tensor(target)
        return {
            "pixels_NCHW": self.tensors[f"{stage}.images"],
            "input_ids_BT": ids,
            "image_mask_BT": mask,
            "labels_BT": labels,
        }


def load_reference(name: str) -> Reference:
    path = REFERENCE / name
    expected = json.loads((path / "expected.json").read_text())
    architecture = Architecture.from_dict(expected["architecture"])
    bundle = open_bundle(path, architecture=architecture)
    return Reference(
        path=path,
        expected=expected,
        tensors=load_file(path / "expected.safetensors"),
        bundle=bundle,
        model=build_model(bundle),
        tokenizer=load_tokenizer(bundle.llm_dir),
    )


_opened: dict[str, Reference] = {}


@pytest.fixture(params=FOLDERS)
def reference(request: pytest.FixtureRequest) -> Reference:
    """Each reference folder; the projector is put back to its start for every test."""
    return _fresh(request.param)


@pytest.fixture
def vicuna() -> Reference:
    return _fresh("vicuna_tiny")


def _fresh(name: str) -> Reference:
    if name not in _opened:
        _opened[name] = load_reference(name)
    opened = _opened[name]
    start = opened.bundle.projector_state()
    assert start is not None
    opened.model.llama_proj.load_state_dict(start)
    opened.model.zero_grad()
    return opened


@pytest.fixture
def bundle(vicuna, tmp_path: Path) -> Path:
    path = vicuna.path
    sources = Sources(
        vit=path / "eva_vit_g.pth",
        qformer=path / "blip2_pretrained_flant5xxl.pth",
        llm=path / "llm",
        projector=path / "pretrained_minigpt4.pth",
        architecture=vicuna.architecture,
    )
    write_bundle(tmp_path / "bundle", sources, llm="copy")
    return tmp_path / "bundle"

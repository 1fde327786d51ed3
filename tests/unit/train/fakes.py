"""A model of one projector, and batches for it: the step's arithmetic without any towers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mgpt4_hpc.data.batching.batch import Batch

WIDTH, NUM_CLASSES = 6, 5


class FakeModel(nn.Module):
    """Cross entropy of the projector's output at each labelled position, summed."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.llama_proj = nn.Linear(WIDTH, NUM_CLASSES)
        self.embedding = torch.randn(50, WIDTH)

    def answer_loss(
        self,
        images_NCHW: Tensor,
        ids_BT: Tensor,
        mask_BT: Tensor,
        labels_BT: Tensor,
        projector: nn.Module | None = None,
    ) -> Tensor:
        project = projector or self.llama_proj
        return nn.functional.cross_entropy(
            project(self.embedding[ids_BT]).flatten(0, 1),
            labels_BT.flatten(),
            reduction="sum",
            ignore_index=-100,
        )


def make_batches(sizes: list[int], seed: int = 1) -> list[Batch]:
    """Micro-batches of so many samples; the same samples whatever the sizes, in the same order."""
    generator = torch.Generator().manual_seed(seed)
    total, tokens = sum(sizes), 7
    ids = torch.randint(0, 50, (total, tokens), generator=generator)
    labels = torch.randint(0, NUM_CLASSES, (total, tokens), generator=generator)
    # Answers of very different lengths: a mean of means would not be the mean.
    lengths = torch.arange(total) * 3 % tokens + 1
    labels[torch.arange(tokens) >= lengths[:, None]] = -100
    batches, begin = [], 0
    for size in sizes:
        part = slice(begin, begin + size)
        begin += size
        batches.append(
            Batch(
                images_NCHW=torch.zeros(size, 3, 2, 2, dtype=torch.uint8),
                input_ids_BT=ids[part],
                image_mask_BT=torch.zeros(size, tokens, dtype=torch.bool),
                labels_BT=labels[part],
                attention_mask_BT=torch.ones(size, tokens, dtype=torch.bool),
                num_answer_tokens=int((labels[part] != -100).sum()),
                keys=tuple(str(n) for n in range(size)),
                positions=tuple(range(size)),
            )
        )
    return batches

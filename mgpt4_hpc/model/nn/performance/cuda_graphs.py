"""The frozen towers as one CUDA graph.

They compute the same kernels on the same shapes in every step, without a gradient. Launched one by
one, these kernels take the CPU longer than a small batch takes the GPU; as a graph they are one
launch, and compute the same bits.

Shapes: N images, C channels, H height, W width, I image tokens, Q projector's input width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch

Encode = Callable[[torch.Tensor], torch.Tensor]

_SEEN_BEFORE = 2
"""Calls with a shape before it is recorded, so that a last, smaller batch is not."""

_MOST_GRAPHS = 2
"""Each keeps its intermediate results' memory: a GiB at batch 64."""


class ReplayedTowers:
    """Calls ``encode``, from the third time that a shape is seen as a graph.

    The weights must stay where they are in memory; code that moves them calls :meth:`forget`.
    """

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._seen: Counter[torch.Size] = Counter()
        self._graphs: dict[torch.Size, _Graph] = {}

    def __call__(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        """Features (N, I, Q) of normalised pixels."""
        shape = pixels_NCHW.shape
        graph = self._graphs.get(shape)
        if graph is None:
            self._seen[shape] += 1
            if self._seen[shape] <= _SEEN_BEFORE or len(self._graphs) >= _MOST_GRAPHS:
                return self._encode(pixels_NCHW)
            graph = self._graphs[shape] = _Graph(self._encode, pixels_NCHW)
        return graph(pixels_NCHW)

    def __len__(self) -> int:
        return len(self._graphs)

    def forget(self) -> None:
        """Drop the graphs; the next call records them again."""
        self._graphs.clear()


class _Graph:
    def __init__(self, encode: Encode, pixels_NCHW: torch.Tensor) -> None:
        self._pixels_NCHW = pixels_NCHW.clone()
        self._graph = torch.cuda.CUDAGraph()
        # Once more outside the recording, on a stream like its own: libraries set themselves up.
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            encode(self._pixels_NCHW)
        torch.cuda.current_stream().wait_stream(aside)
        # Other threads (pinning batches, saving checkpoints) go on using the device meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._features_NIQ = encode(self._pixels_NCHW)

    def __call__(self, pixels_NCHW: torch.Tensor) -> torch.Tensor:
        self._pixels_NCHW.copy_(pixels_NCHW)
        self._graph.replay()
        # The next replay overwrites them, and until then a backward pass may want to read them.
        return self._features_NIQ.clone()

"""Write safetensors shards tensor by tensor, in memory that does not grow with the model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mgpt4_hpc.model.weight_files.headers import ITEM_BYTES, TORCH_NAMES, TensorInfo
from mgpt4_hpc.model.weight_files.one_pass import (
    BLOCK_BYTES,
    Output,
    safetensors_header,
    tensor_info,
)
from mgpt4_hpc.model.weight_files.untrusted_files import read_tensors

if TYPE_CHECKING:
    import torch

SHARD_BYTES = 4 * 10**9
"""Most bytes of a shard, unless one tensor alone has more."""

WEIGHTS_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"


@dataclass(frozen=True)
class Entry:
    """One tensor that is to be written.

    Attributes:
        dtype: as safetensors names it (``BF16``).
        shape: its sizes.
        blocks: reads or computes its bytes when they are written.
    """

    dtype: str
    shape: tuple[int, ...]
    blocks: Callable[[], Iterable[bytes]]

    @property
    def num_bytes(self) -> int:
        """Bytes of all its numbers."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def info(self) -> TensorInfo:
        """What the header says of it."""
        return TensorInfo(self.dtype, self.shape, self.num_bytes)


def stored(info: TensorInfo, name: str) -> Entry:
    """A tensor that is copied from its file, where it is called ``name``."""

    def blocks() -> Iterator[bytes]:
        """The tensor's bytes; raises OSError if the file became shorter."""
        if info.start is None:  # only torch knows how its numbers are scattered
            yield from of_tensor(read_tensors(info.file)[name]).blocks()
            return
        with info.file.open("rb") as file:
            file.seek(info.start)
            remaining = info.num_bytes
            while remaining:
                data = file.read(min(BLOCK_BYTES, remaining))
                if not data:
                    raise OSError(f"{info.file} became shorter while it was read")
                remaining -= len(data)
                yield data

    return Entry(info.dtype, info.shape, blocks)


def of_tensor(tensor: torch.Tensor) -> Entry:
    """A torch tensor; its bytes are copied when they are written."""
    info = tensor_info(tensor[:0] if tensor.dim() else tensor)
    return Entry(info.dtype, tuple(tensor.shape), lambda: [tensor_info(tensor).data or b""])


def read_entry(entry: Entry) -> torch.Tensor:
    """An entry's numbers as a torch tensor."""
    import torch

    data = bytearray().join(entry.blocks())
    return torch.frombuffer(data, dtype=torch_type(entry.dtype)).reshape(entry.shape)


def torch_type(dtype: str) -> torch.dtype:
    """Torch's type for safetensors' name of it."""
    import torch

    kind: torch.dtype = getattr(torch, TORCH_NAMES[dtype])
    return kind


def write_shards(
    folder: Path,
    entries: Mapping[str, Entry],
    *,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write ``model.safetensors``, or numbered shards with their index, as transformers names them.

    Args:
        folder: where; it exists.
        entries: tensors by name, in the order in which they fill the shards.
        on_progress: called with the bytes written, and all that there are.
        shard_bytes: limit of a shard.

    Raises:
        OSError: from storage.
    """
    total, done = sum(entry.num_bytes for entry in entries.values()), 0
    shards = _divide(entries, shard_bytes)
    weight_map = {}
    for number, names in enumerate(shards, 1):
        is_single = len(shards) == 1
        file = WEIGHTS_FILE if is_single else f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        names.sort(key=lambda name: -ITEM_BYTES[entries[name].dtype])  # each type lies aligned
        output = Output(folder / file)
        output.write(safetensors_header({name: entries[name].info for name in names}))
        for name in names:
            for block in entries[name].blocks():
                output.write(block)
                done += len(block)
                on_progress(done, total)
            weight_map[name] = file
        output.close()
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX_FILE).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _divide(entries: Mapping[str, Entry], shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for name, entry in entries.items():
        if size + entry.num_bytes > shard_bytes and shards[-1]:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += entry.num_bytes
    return shards

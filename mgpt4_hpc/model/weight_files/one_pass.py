"""Read a weight file once: hash it, find NaN and infinity, and copy what is wanted of it.

Bytes go through one buffer per file, so memory does not grow with the file. Several files are read
at a time: hashing and copying release the interpreter's lock, so the cores share the work.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.weight_files.fingerprint import HASH_BYTES, WeightFileRecord, fingerprint
from mgpt4_hpc.model.weight_files.headers import DTYPE_NAMES, ITEM_BYTES, TensorInfo

BLOCK_BYTES = 4 * 1024 * 1024
_MOST_FILES_AT_ONCE = 8

_EXPONENTS: dict[str, tuple[Literal["B", "H", "I", "Q"], int]] = {
    "F16": ("H", 0x7C00),
    "BF16": ("H", 0x7F80),
    "F32": ("I", 0x7F80_0000),
    "F64": ("Q", 0x7FF0_0000_0000_0000),
    "F8_E5M2": ("B", 0x7C),
}
"""IEEE 754: a number with all exponent bits set is infinite or NaN. The letter is struct's."""
_SMALL_BYTES = 1 << 18
"""Below this a loop costs less than the import of NumPy, which `mgpt4 submit` does without."""

Advance = Callable[[int], None]
"""Called with a number of bytes that were read, from any thread."""


def is_finite(data: memoryview | bytes, dtype: str) -> bool:
    """Whether no number in the bytes is infinite or NaN; True for types that know neither."""
    if dtype not in _EXPONENTS or not len(data):
        return True
    kind, mask = _EXPONENTS[dtype]
    if len(data) <= _SMALL_BYTES:
        return max(map(mask.__and__, memoryview(data).cast("B").cast(kind))) != mask
    import numpy as np

    bits = np.frombuffer(data, dtype=kind)
    return bool((bits & bits.dtype.type(mask)).max() != mask)


class Output:
    """A file that is written from its beginning to its end, hashed on the way."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] = path.open("xb", buffering=0)
        self._digest = hashlib.blake2b(digest_size=HASH_BYTES)
        self._num_bytes = 0

    def write(self, data: memoryview | bytes) -> None:
        """Append. Raises OSError, as on a full disk."""
        self._digest.update(data)
        self._num_bytes += len(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def close(self) -> WeightFileRecord:
        """Return once the file survives a power cut."""
        os.fsync(self._file.fileno())
        self._file.close()
        return WeightFileRecord(self._num_bytes, self._digest.hexdigest(), fingerprint(self._path))


@dataclass
class Reading:
    """One file to be read, and what came of it.

    Attributes:
        path: the file.
        tensors: name -> where it lies in the file; those that overlap others are left out.
        outputs: name -> the file that the tensor is appended to, in the order of their places.
        whole: where all bytes of the file are copied to.
        blake2b: hash of the whole file, afterwards.
        not_finite: names of the tensors that hold NaN or infinity, afterwards.
    """

    path: Path
    tensors: Mapping[str, TensorInfo] = field(default_factory=dict)
    outputs: Mapping[str, Output] = field(default_factory=dict)
    whole: Output | None = None
    blake2b: str = ""
    not_finite: list[str] = field(default_factory=list)

    def run(self, *, finite: bool, advance: Advance, stopped: Callable[[], bool]) -> None:
        """Read it. Raises WeightsError if it ends early; OSError from storage."""
        digest = hashlib.blake2b(digest_size=HASH_BYTES)
        buffer = memoryview(bytearray(BLOCK_BYTES))
        bad: set[str] = set()
        with self.path.open("rb", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            for length, name in self._blocks(size):
                if stopped():
                    return
                view = buffer[:length]
                _fill(file, view, self.path)
                digest.update(view)
                if self.whole is not None:
                    self.whole.write(view)
                if name is not None:
                    if name in self.outputs:
                        self.outputs[name].write(view)
                    if finite and name not in bad and not is_finite(view, self.tensors[name].dtype):
                        bad.add(name)
                advance(length)
        self.blake2b = digest.hexdigest()
        self.not_finite = sorted(bad)

    def _blocks(self, size: int) -> Iterator[tuple[int, str | None]]:
        """Lengths of the blocks that make up the file, and the tensor that each belongs to."""
        place = 0
        for name, begin, end in [*apart(self.tensors), (None, size, size)]:
            for start, stop, owner in ((place, begin, None), (begin, end, name)):
                for offset in range(start, stop, BLOCK_BYTES):
                    yield min(BLOCK_BYTES, stop - offset), owner
            place = end


def apart(tensors: Mapping[str, TensorInfo]) -> list[tuple[str | None, int, int]]:
    """Name, begin and end of the tensors that lie one behind the other, in their order."""
    ranges: list[tuple[str | None, int, int]] = []
    place = 0
    for start, name in sorted((i.start, k) for k, i in tensors.items() if i.start is not None):
        if start >= place:
            place = start + tensors[name].num_bytes
            ranges.append((name, start, place))
    return ranges


def _fill(file: IO[bytes], view: memoryview, path: Path) -> None:
    while view:
        count = file.readinto(view)  # type: ignore[attr-defined]
        if not count:
            raise WeightsError(f"{path} became shorter while it was read")
        view = view[count:]


def run_all(
    chains: Iterable[Sequence[Reading]],
    *,
    finite: bool,
    on_progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Do all readings: chains side by side, the readings of one chain one after the other.

    Args:
        chains: readings that append to the same output belong into one chain.
        finite: look for NaN and infinity.
        on_progress: called with the bytes read, and those in all.

    Raises:
        WeightsError, OSError: the first that a reading raises; the others stop.
    """
    chains = sorted(chains, key=_size, reverse=True)
    total, done, lock, stop = sum(map(_size, chains)), 0, threading.Lock(), threading.Event()

    def advance(count: int) -> None:
        """Report ``count`` more bytes; called by several threads."""
        nonlocal done
        with lock:
            done += count
            on_progress(done, total)

    def run(chain: Sequence[Reading]) -> None:
        """Do a chain's readings in order; a failure stops all chains."""
        try:
            for reading in chain:
                reading.run(finite=finite, advance=advance, stopped=stop.is_set)
        except BaseException:
            stop.set()
            raise

    workers = min(_MOST_FILES_AT_ONCE, len(os.sched_getaffinity(0)))
    with ThreadPoolExecutor(workers) as pool:
        try:
            for result in [pool.submit(run, chain) for chain in chains]:
                result.result()
        except BaseException:
            stop.set()
            raise


def _size(chain: Sequence[Reading]) -> int:
    return sum(reading.path.stat().st_size for reading in chain)


def require_finite(readings: Iterable[Reading]) -> None:
    """Raises WeightsError naming each file and tensor in which NaN or infinity was found."""
    bad = [(reading.path, name) for reading in readings for name in reading.not_finite]
    if bad:
        listed = "".join(f"\n  - {path}: {name}" for path, name in bad[:20])
        more = f"\n  ... and {len(bad) - 20} more" if len(bad) > 20 else ""
        raise WeightsError(
            f"{len(bad)} tensors hold NaN or infinity:{listed}{more}",
            why="the loss would be NaN from the first step on",
            fix="compare the file's hash with the source's, and download it again",
        )


def require_finite_vectors(tensors: Mapping[str, TensorInfo]) -> None:
    """Look at norms and biases only: megabytes of a model's gigabytes, read in seconds.

    Raises:
        WeightsError: as ``require_finite``, for tensors of at most one dimension.
    """
    bad: dict[Path, list[str]] = {}
    for name, info in tensors.items():
        small = info.dim() < 2 and info.num_bytes <= BLOCK_BYTES
        if small and info.start is not None and not is_finite(info.read(), info.dtype):
            bad.setdefault(info.file, []).append(name)
    require_finite(Reading(path, not_finite=names) for path, names in bad.items())


@dataclass(frozen=True)
class Layout:
    """The order of the tensors of a safetensors file that is to be written.

    Large types come first, as each number must lie at a multiple of its size. The tensors of the
    type that takes most of the bytes are copied in the order in which their files hold them; the
    others, and those that are not contiguous, go through memory.

    Attributes:
        header: the file's beginning.
        before, copied, after: names, in the order in which they are written.
    """

    header: bytes
    before: list[str]
    copied: list[str]
    after: list[str]


def lay_out(tensors: Mapping[str, TensorInfo]) -> Layout:
    """Order the tensors, and write the header."""
    sums: dict[str, int] = {}
    for info in tensors.values():
        sums[info.dtype] = sums.get(info.dtype, 0) + info.num_bytes
    main = max(sums, key=lambda dtype: sums[dtype], default="")
    by_file: dict[Path, dict[str, TensorInfo]] = {}
    for name, info in tensors.items():
        if info.dtype == main and info.start is not None and info.data is None:
            by_file.setdefault(info.file, {})[name] = info
    copied = [n for file in sorted(by_file) for n, _, _ in apart(by_file[file]) if n is not None]
    rest = sorted(set(tensors) - set(copied), key=lambda n: -ITEM_BYTES[tensors[n].dtype])
    before = [n for n in rest if ITEM_BYTES[tensors[n].dtype] > ITEM_BYTES.get(main, 0)]
    after = [n for n in rest if n not in set(before)]
    order = [*before, *copied, *after]
    header = safetensors_header({name: tensors[name] for name in order})
    return Layout(header, before, copied, after)


def safetensors_header(tensors: Mapping[str, TensorInfo]) -> bytes:
    """A file's beginning, for tensors that follow in that order.

    See https://github.com/huggingface/safetensors.
    """
    entries, place = {}, 0
    for name, info in tensors.items():
        end = place + info.num_bytes
        entries[name] = {"dtype": info.dtype, "shape": info.shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps({"__metadata__": {"format": "pt"}} | entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def tensor_info(tensor: Any) -> TensorInfo:
    """A torch tensor on the CPU as a description that holds its bytes."""
    import torch

    name = DTYPE_NAMES[str(tensor.dtype).removeprefix("torch.")]
    whole = tensor.detach().cpu().contiguous()
    data = whole.reshape(-1).view(torch.uint8).numpy().tobytes()
    return TensorInfo(name, tuple(tensor.shape), len(data), data=data)

"""The table of contents of a torch file (``.pth``, ``.bin``), read without torch or the data.

A torch file is a zip archive of ``data.pkl``, a pickle that describes the tensors, and one stored
entry per storage. Before torch 1.6 it was a sequence of pickles followed by the storages. The
pickle is read with stand-ins for the few functions that describe tensors, and with nothing else:
a pickle that names any other function or class is refused, as ``torch.load(weights_only=True)``
refuses it, and nothing of it runs.
"""

from __future__ import annotations

import _codecs
import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.weight_files.headers import DTYPE_NAMES, ITEM_BYTES, TensorInfo
from mgpt4_hpc.model.weight_files.untrusted_files import (
    broken_file,
    no_table,
    pickle_fault,
    require_real_file,
)

_STORAGE_TYPES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8",
    "ByteStorage": "U8", "BoolStorage": "BOOL", "ComplexFloatStorage": "C64",
    "UntypedStorage": "U8", "_UntypedStorage": "U8",
}  # fmt: skip

_DAMAGE = (
    zipfile.BadZipFile, struct.error, EOFError, OSError, ValueError, TypeError, LookupError,
    AttributeError, ImportError, MemoryError, OverflowError, RecursionError,
)  # fmt: skip
"""What a damaged pickle or archive makes the readers raise."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
"""First pickle of a file that torch before 1.6 wrote."""


@dataclass(frozen=True)
class _Storage:
    """A run of numbers in the file: its type, its length in bytes, and where it begins."""

    dtype: str
    num_bytes: int
    start: int


class _Inert:
    """Stands for a value that describes no tensor, as a device; takes and does anything."""

    def __init__(self, *_arguments: object) -> None:
        pass


def read_directory(path: Path) -> dict[Any, Any]:
    """What the file holds, each tensor replaced by its ``TensorInfo``.

    Raises:
        WeightsError: if it is truncated, no torch file, no table, or its pickle names anything but
            tensors and plain values.
    """
    require_real_file(path)
    try:
        content = _read_zip(path) if zipfile.is_zipfile(path) else _read_legacy(path)
    except pickle.UnpicklingError as error:
        raise pickle_fault(path, str(error)) from None
    except WeightsError:
        raise
    except _DAMAGE as error:
        raise broken_file(path, error) from None
    if not isinstance(content, dict):
        raise no_table(path, content)
    return content


def _read_zip(path: Path) -> Any:
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        entries = {info.filename.partition("/")[2]: info for info in archive.infolist()}

        def locate(key: str, num_bytes: int) -> int:
            """Where a storage begins. Its entry must hold as many bytes as the pickle counts."""
            entry = entries[f"data/{key}"]
            file.seek(entry.header_offset)
            head = file.read(30)
            if head[:4] != b"PK\3\4" or entry.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"its entry data/{key} is damaged")
            if entry.file_size != num_bytes:
                raise ValueError(f"data/{key} has {entry.file_size:,} bytes, not {num_bytes:,}")
            names, extra = struct.unpack("<HH", head[26:30])
            return entry.header_offset + 30 + int(names) + int(extra)

        return _Reader(io.BytesIO(archive.read(entries["data.pkl"])), locate, path).load()


def _read_legacy(path: Path) -> Any:
    """Twice: the storages' order stands behind the description of the tensors."""
    with path.open("rb") as file:
        lengths: dict[str, int] = {}

        def note_length(key: str, num_bytes: int) -> int:
            """Keep a storage's length; its place is not known yet."""
            lengths[key] = num_bytes
            return 0

        for expected in (_LEGACY_MAGIC, None, None):  # then the protocol's number, the system's
            if _Reader(file, note_length, path).load() != expected and expected is not None:
                raise ValueError("its beginning is not a torch file's")
        begin = file.tell()
        _Reader(file, note_length, path).load()
        place, starts = 0, {}
        keys = _Reader(file, note_length, path).load()
        place = file.tell()
        for key in keys:
            starts[str(key)] = place + 8  # a storage's number of elements comes first
            place += 8 + lengths[str(key)]
        if place != path.stat().st_size:
            raise ValueError(f"it should have {place:,} bytes")
        file.seek(begin)
        return _Reader(file, lambda key, _num_bytes: starts[key], path).load()


class _Reader(pickle.Unpickler):
    """Reads the description of tensors, and refuses everything else by its name."""

    def __init__(self, file: IO[bytes], locate: Callable[[str, int], int], path: Path) -> None:
        super().__init__(file)
        self._locate, self._path = locate, path
        self._known: dict[str, Any] = {
            "collections.OrderedDict": OrderedDict,
            "collections.Counter": OrderedDict,
            "_codecs.encode": _codecs.encode,
            "torch._utils._rebuild_tensor": self._tensor,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_tensor_v3": self._typed_tensor,
            "torch._utils._rebuild_parameter": _first,
            "torch._utils._rebuild_parameter_with_state": _first,
            "torch._tensor._rebuild_from_type_v2": _from_type,
            "torch.Size": tuple,
        }
        self._known |= {f"torch.{name}": kind for name, kind in _STORAGE_TYPES.items()}
        self._known |= {f"torch.storage.{name}": kind for name, kind in _STORAGE_TYPES.items()}
        self._known |= {f"torch.{name}": kind for name, kind in DTYPE_NAMES.items()}
        for name in ("torch.device", "torch.Tensor", "torch.nn.parameter.Parameter",
                     "torch.serialization._get_layout"):  # fmt: skip
            self._known[name] = _Inert
        for name in ("set", "bytearray", "complex"):
            self._known[f"builtins.{name}"] = self._known[f"__builtin__.{name}"] = _Inert

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a function or class that a pickle names."""
        try:
            return self._known[f"{module}.{name}"]
        except KeyError:
            raise pickle.UnpicklingError(f"GLOBAL {module}.{name}") from None

    def persistent_load(self, pid: Any) -> _Storage:
        """A storage: ``("storage", its type, key, device, number of elements, ...)``."""
        _, dtype, key, _, count = pid[:5]
        num_bytes = int(count) * ITEM_BYTES[dtype]
        return _Storage(dtype, num_bytes, self._locate(str(key), num_bytes))

    def _tensor(
        self, storage: _Storage, offset: int, shape: Sequence[int], stride: Sequence[int],
        *_rest: object,
    ) -> TensorInfo:  # fmt: skip
        return self._info(storage, storage.dtype, (offset, tuple(shape), tuple(stride)))

    def _typed_tensor(
        self, storage: _Storage, offset: int, shape: Sequence[int], stride: Sequence[int],
        *rest: Any,
    ) -> TensorInfo:  # fmt: skip
        return self._info(storage, rest[2], (offset, tuple(shape), tuple(stride)))

    def _info(
        self, storage: _Storage, dtype: str, place: tuple[int, tuple[int, ...], tuple[int, ...]]
    ) -> TensorInfo:
        offset, shape, stride = place
        item = ITEM_BYTES[dtype]
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride, strict=True))
        num_bytes = math.prod(shape) * item
        if num_bytes and (min(offset, last) < 0 or (last + 1) * item > storage.num_bytes):
            raise ValueError(f"a tensor {shape} is larger than its storage")
        whole = all(
            n == 1 or s == math.prod(shape[i + 1 :])
            for i, (n, s) in enumerate(zip(shape, stride, strict=True))
        )
        start = storage.start + offset * item if whole else None
        return TensorInfo(dtype, shape, num_bytes, self._path, start)


def _first(value: Any, *_rest: object) -> Any:
    return value


def _from_type(function: Callable[..., Any], _type: object, arguments: Any, _state: object) -> Any:
    return function(*arguments)


def flat_table(content: Mapping[Any, Any]) -> dict[str, TensorInfo] | None:
    """The content as a table of tensors and nothing else; None if it is anything more."""
    if not all(isinstance(value, TensorInfo) for value in content.values()):
        return None
    return {str(key): value for key, value in content.items()}

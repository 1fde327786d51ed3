"""The frozen towers' output, stored once, in place of images.

A cache is a folder: ``cache.json`` says what the features are made of and how, and any number of
shards (see ``feature_cache_file``) list the samples that they hold. Captions are stored beside the
features, so that a run that trains from a cache reads nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgpt4_hpc.data.reading.feature_cache_file import STORED, BadRow, FeatureShard
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.run_dir import read_json, write_json

MANIFEST = "cache.json"
FORMAT = "mgpt4-features-1"
_SHIFT = 40
"""Sample numbers stay below 2**40, so that source and sample fit one int64."""

Int64 = NDArray[np.int64]


def binding_of(
    *, bundle: str, image_size: int, has_qformer: bool, resize: str, ln_vision: str, precision: str
) -> dict[str, Any]:
    """Everything that decides a sample's features, but for the sample.

    Args:
        bundle: digest of the weights.
        image_size: side in pixels.
        has_qformer: else ``ln_vision`` says what becomes of the bundle's.
        resize: how images of another size are fitted.
        ln_vision: see ``model.ln_vision``.
        precision: of the matrix products of vision tower and connector.
    """
    return {
        "bundle": bundle,
        "image_size": image_size,
        "resize": resize,
        "ln_vision": "bundle" if has_qformer else ln_vision,
        "vision_precision": precision,
    }


class FeatureCache:
    """An opened cache.

    Attributes:
        folder: where it lies.
        binding: what decides the features, by name: bundle, image size, precision and so on.
        sources: digest of each source's index, by the source's name.
        dtype: of the stored features: ``bf16`` or ``fp32``.
        shape: (I, Q) of a sample's features.

    Raises:
        DataError: if it is none, or a shard of it is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            manifest = read_json(folder / MANIFEST)
            if manifest["format"] != FORMAT:
                raise ValueError(f"its format is {manifest['format']!r}, known is {FORMAT!r}")
            self.binding: dict[str, Any] = manifest["binding"]
            self.sources: dict[str, str] = manifest["sources"]
            self.dtype: str = manifest["dtype"]
            self.shape: tuple[int, int] = tuple(manifest["shape"])
            if self.dtype not in STORED:
                raise ValueError(f"its type is {self.dtype!r}")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{folder} is no feature cache: {error}",
                fix="make one with: mgpt4 data encode",
            ) from None
        self.refresh()

    @classmethod
    def create(
        cls,
        folder: Path,
        binding: Mapping[str, Any],
        sources: Mapping[str, str],
        dtype: str,
        shape: Sequence[int],
    ) -> FeatureCache:
        """Begin a cache, or open one that was begun with the same.

        Raises:
            DataError: naming what differs from a cache that is there.
        """
        if (folder / MANIFEST).exists():
            cache = cls(folder)
            cache.require(binding, sources)
            if cache.dtype != dtype:
                raise _other(folder, [f"its features are {cache.dtype}, asked for is {dtype}"])
            return cache
        try:
            folder.mkdir(exist_ok=True)
            if any(folder.glob("*.safetensors")):
                raise DataError(f"{folder} holds something else", fix="give a folder of its own")
            write_json(
                folder / MANIFEST,
                {
                    "format": FORMAT,
                    "binding": dict(binding),
                    "sources": dict(sources),
                    "dtype": dtype,
                    "shape": list(shape),
                },
            )
        except OSError as error:
            raise DataError(f"cannot use the folder {folder}: {error.strerror}") from error
        return cls(folder)

    def refresh(self) -> None:
        """List the shards that are there."""
        paths = sorted(self.folder.glob("*.safetensors"))
        self.shards = [FeatureShard(path, self.dtype) for path in paths]
        keys = [_keys(shard.source, shard.sample) for shard in self.shards]
        joined = np.concatenate([np.zeros(0, np.int64), *keys])
        self._first = np.cumsum([0, *(len(shard) for shard in self.shards)])
        self._row_of_key = np.argsort(joined, kind="stable")
        self._keys = joined[self._row_of_key]
        bad = [row for shard in self.shards for row in shard.bad]
        mended = self.rows_of(
            np.asarray([row.source for row in bad]), np.asarray([row.sample for row in bad])
        )
        self.bad: dict[tuple[int, int], BadRow] = {
            (row.source, row.sample): row
            for row, new_row in zip(bad, mended.tolist(), strict=True)
            if new_row < 0
        }
        self._bad_keys = _keys(*np.asarray(list(self.bad), np.int64).reshape(-1, 2).T)

    @property
    def num_samples(self) -> int:
        """Encoded samples; one that two shards have counts twice."""
        return len(self._keys)

    @property
    def content(self) -> str:
        """What a run is pinned to: equal for caches that may replace each other."""
        parts = [f"{key}={value}" for key, value in sorted(self.binding.items())]
        return f"{self.dtype} of {', '.join(parts)}"

    def differences(self, binding: Mapping[str, Any], sources: Mapping[str, str]) -> list[str]:
        """What of ``binding`` and ``sources`` is not as it was when the cache was begun."""
        faults = [
            f"{key} was {self.binding.get(key)}, is {value}"
            for key, value in binding.items()
            if self.binding.get(key) != value
        ]
        for name, digest in sources.items():
            known = self.sources.get(name)
            if known is None:
                faults.append(f"it has no source {name!r}, only {', '.join(sorted(self.sources))}")
            elif known != digest:
                faults.append(f"the index of {name} was {known}, is {digest}")
        return faults

    def require(self, binding: Mapping[str, Any], sources: Mapping[str, str]) -> None:
        """Raise DataError unless these features are what the towers would compute now."""
        if faults := self.differences(binding, sources):
            raise _other(self.folder, faults)

    def source_numbers(self, names: Sequence[str]) -> list[int]:
        """The cache's own numbers of sources: their places among all names, sorted."""
        known = sorted(self.sources)
        return [known.index(name) for name in names]

    def source_name(self, number: int) -> str:
        """Name of the source with one of these numbers."""
        return sorted(self.sources)[number]

    def rows_of(self, source: NDArray[Any], sample: NDArray[Any]) -> Int64:
        """Row of each sample in the whole cache; -1 where there is none."""
        wanted = _keys(source, sample)
        if not len(self._keys):
            return np.full(wanted.shape, -1, np.int64)
        place = np.minimum(np.searchsorted(self._keys, wanted), len(self._keys) - 1)
        rows: Int64 = np.where(self._keys[place] == wanted, self._row_of_key[place], -1)
        return rows

    def are_bad(self, source: NDArray[Any], sample: NDArray[Any]) -> NDArray[np.bool_]:
        """Which samples are known to be of no use."""
        return np.isin(_keys(source, sample), self._bad_keys)

    def state(self, source: int, sample: int) -> bool | None:
        """State of one sample: True if it is here, False if it is bad, None if it is unknown."""
        if (source, sample) in self.bad:
            return False
        is_here = self.rows_of(np.asarray([source]), np.asarray([sample]))[0] >= 0
        return True if is_here else None

    def place_of(self, row: int) -> tuple[int, int]:
        """(shard, row within it) of a row of the whole cache."""
        shard = int(np.searchsorted(self._first, row, side="right")) - 1
        return shard, row - int(self._first[shard])


def _keys(source: NDArray[Any], sample: NDArray[Any]) -> Int64:
    return (np.asarray(source).astype(np.int64) << _SHIFT) + np.asarray(sample).astype(np.int64)


def _other(folder: Path, faults: Sequence[str]) -> DataError:
    return DataError(
        f"the feature cache {folder} is of something else: {'; '.join(faults)}",
        why="its features are not what the towers would compute for this run",
        fix="set it right, or encode into another folder",
    )

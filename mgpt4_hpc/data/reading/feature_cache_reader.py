"""Samples by number from a feature cache: one ``pread`` each, as ``SampleReader`` for shards."""

from __future__ import annotations

import errno
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mgpt4_hpc.data.reading.feature_cache import FeatureCache
from mgpt4_hpc.data.reading.feature_cache_file import STORED, FeatureRow
from mgpt4_hpc.data.reading.reader import (
    MAX_OPEN_SHARDS,
    PASSING,
    RETRY_PAUSES_S,
    BadSampleError,
    RawSample,
    storage_trouble,
)
from mgpt4_hpc.errors import DataError

_WITHOUT_IT = "rename the file, and `mgpt4 data encode` makes it again"


class FeatureReader:
    """Reads samples of a run's sources from a cache; what ``SampleReader`` and decoding are else.

    Args:
        cache: it must hold whatever is asked for.
        names: of the run's sources; the position in this list is the source id.
        max_open: shards kept open.
        sleep: replaced in tests.
    """

    def __init__(
        self,
        cache: FeatureCache,
        names: Sequence[str],
        *,
        max_open: int = MAX_OPEN_SHARDS,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.cache = cache
        self.bits = STORED[cache.dtype][1]
        self._numbers = cache.source_numbers(names)
        self._max_open = max_open
        self._sleep = sleep
        self._open: OrderedDict[int, int] = OrderedDict()
        self._owner = os.getpid()

    def read(self, source_id: int, sample_id: int) -> tuple[RawSample, NDArray[Any]]:
        """Key and text of a sample, and the features (N, I, Q) of its N images, as bits.

        Raises:
            BadSampleError: if it could not be encoded.
            DataError: if it is not in the cache, or the cache is damaged or refused.
            StorageTrouble: if its shard cannot be read for half a minute, or is gone.
        """
        source = self._numbers[source_id]
        row = int(self.cache.rows_of(np.asarray([source]), np.asarray([sample_id]))[0])
        if row < 0:
            bad = self.cache.bad.get((source, sample_id))
            if bad is not None:
                raise BadSampleError(bad.key, self.cache.folder, bad.reason)
            raise DataError(
                f"sample {sample_id} of {self.cache.source_name(source)} is not in the feature "
                f"cache {self.cache.folder}",
                fix="run `mgpt4 data encode` again with this run's settings",
            )
        shard, row = self.cache.place_of(row)
        features = self._read(shard, row)
        return RawSample(features.key, (), features.text), features.features

    def close(self) -> None:
        """Close all shards; reading on reopens them."""
        if self._owner == os.getpid():
            for fd in self._open.values():
                os.close(fd)
        self._open.clear()

    def _read(self, shard: int, row: int) -> FeatureRow:
        for pause in (*RETRY_PAUSES_S, None):
            try:
                return self.cache.shards[shard].read(self._descriptor(shard), row)
            except OSError as error:
                fd = self._open.pop(shard, None)
                if fd is not None:
                    os.close(fd)
                path = self.cache.shards[shard].path
                # Nothing can stand in for a shard of a cache, also for one that is gone.
                if error.errno not in PASSING | {errno.ENOENT}:
                    raise DataError(
                        f"{path} cannot be read: {error.strerror or error}",
                        fix="see that the feature cache can be read by whoever runs the job",
                    ) from None
                if pause is None:
                    raise storage_trouble(path, error, _WITHOUT_IT) from error
                self._sleep(pause)
        raise AssertionError("unreachable")

    def _descriptor(self, shard: int) -> int:
        if self._owner != os.getpid():  # forked: the descriptors belong to the parent
            self._open.clear()
            self._owner = os.getpid()
        fd = self._open.get(shard)
        if fd is None:
            fd = self._open[shard] = os.open(
                self.cache.shards[shard].path, os.O_RDONLY | os.O_CLOEXEC
            )
            while len(self._open) > self._max_open:
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(shard)
        return fd

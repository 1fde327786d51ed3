"""Sources that are URLs: read as a stream, which cannot resume exactly."""

from __future__ import annotations

import re
from pathlib import Path

from mgpt4_hpc.config.schema import RunConfig

_URL = re.compile(r"^(pipe:|[a-z][a-z0-9+.-]*://)")

_BETWEEN_URLS = re.compile(r"::(?=pipe:|[a-z][a-z0-9+.-]*://|[/.~])")
"""An IPv6 address has the two colons as well."""

WARNING = (
    "its sources are URLs and read as streams: a resumed run starts them again in another order, "
    "so that samples may come twice or not at all within an epoch (download the shards and index "
    "them for an exact one)"
)
"""Continues "this run cannot resume exactly"."""


def is_url(path: str) -> bool:
    """Whether a source's path is a URL (``https://...``, ``s3://...``) or a ``pipe:``."""
    return _URL.match(path) is not None


def split_joined(path: str) -> list[str]:
    """The parts of a source's path that are joined with ``::``, as webdataset takes them."""
    if is_url(path):
        return _BETWEEN_URLS.split(path)
    return [path] if "::" not in path or Path(path).exists() else path.split("::")


def is_streamed(config: RunConfig) -> bool:
    """Whether a run reads streams."""
    return any(is_url(source.path) for source in config.data.sources)


def stream_faults(config: RunConfig) -> list[str]:
    """What of the settings a streamed run cannot have."""
    if not is_streamed(config):
        return []
    faults = []
    for source in config.data.sources:
        if not is_url(source.path):
            faults.append(
                f"data source {source.name} is no URL, others are: streams mix with streams only"
            )
        elif source.index:
            faults.append(f"data source {source.name} is a URL, which has no index: leave it out")
    if config.train.eval_every_steps:
        faults.append(
            "a stream has no held-out samples: set train.eval_every_steps 0 "
            f"(it is {config.train.eval_every_steps})"
        )
    if config.data.val_fraction:
        faults.append(
            "a stream has no held-out samples: set data.val_fraction 0 "
            f"(it is {config.data.val_fraction})"
        )
    if config.data.feature_cache is not None:
        faults.append("a stream has no samples by number: data.feature_cache needs shards")
    return faults

"""Tests of ``config/streams.py``."""

from __future__ import annotations

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.streams import is_url, stream_faults


def test_what_a_stream_cannot_have() -> None:
    assert is_url("pipe:cat x.tar")
    assert is_url("https://host/{0..9}.tar")
    assert not is_url("/data/pipe:x")
    config = load_config(
        "toy-stage1",
        overrides={
            "data.sources": [
                {"name": "a", "path": "https://host/a.tar", "index": "a.index"},
                {"name": "b", "path": "/data/b"},
            ],
            "data.val_fraction": 0.1,
            "train.eval_every_steps": 5,
        },
    ).config
    told = "\n".join(stream_faults(config))
    for part in (
        "b is no URL",
        "a is a URL, which has no index",
        "eval_every_steps",
        "val_fraction",
    ):
        assert part in told

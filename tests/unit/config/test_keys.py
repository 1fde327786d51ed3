"""Tests of ``config/keys.py``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mgpt4_hpc.config import keys

DOCS = Path(__file__).parents[3] / "docs" / "sites.md"


def test_the_docs_name_no_key_that_does_not_exist() -> None:
    for key in re.findall(r"`((?:launch|container|data|model)\.[a-z_]+)`", DOCS.read_text()):
        assert keys.resolve(key)[1] == "", key


@pytest.mark.parametrize(
    ("fault", "names", "expected"),
    [
        ("the run one exists already", {"lr"}, False),
        ("train.lr: too high", {"lr", "train.lrr"}, False),
        ("no train.lrr", {"train.lr"}, False),
        ("train.lr: too high", {"train.lr"}, True),
        ("2 x train.micro_batch_size = 4", {"train"}, True),
        ("launch.stage_env is no folder", {"stage"}, False),
    ],
)
def test_a_fault_mentions_whole_names_of_settings(
    fault: str, names: set[str], expected: bool
) -> None:
    assert keys.mentions(fault, names) is expected

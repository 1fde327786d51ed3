"""Tests of ``config/keys.py``."""

from __future__ import annotations

import re
from pathlib import Path

from mgpt4_hpc.config import keys

DOCS = Path(__file__).parents[3] / "docs" / "sites.md"


def test_the_docs_name_no_key_that_does_not_exist() -> None:
    for key in re.findall(r"`((?:launch|container|data|model)\.[a-z_]+)`", DOCS.read_text()):
        assert keys.resolve(key)[1] == "", key

"""docs/architecture.md and CONTRIBUTING.md name files that exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mgpt4_hpc"


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_every_file_that_a_page_names_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`([a-z_0-9]+/[a-z_0-9/*]+(?:\.[a-z]+|/))`", text)
    assert named
    missing = [n for n in named if not any(True for base in (PACKAGE, ROOT) for _ in base.glob(n))]
    assert missing == []

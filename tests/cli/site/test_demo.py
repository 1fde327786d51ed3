"""What ``mgpt4 demo`` prints at its end, without the minutes before it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from mgpt4_hpc.cli.site.demo import _show


def test_in_a_file_a_row_is_a_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    said = "[a] large red circle left of a small blue square " * 3
    stage = SimpleNamespace(first_loss=3.0, last_loss=1.0, seconds=60.0)
    share = {"right": 0.5, "incomplete": 0.25, "repetitive": 0.0}
    result = SimpleNamespace(
        rows=[("000.jpg", said, said, "truth")], stages=[stage] * 2, shares=[share] * 2
    )
    _show(result, tmp_path)
    told = capsys.readouterr().out
    (row,) = [line for line in told.splitlines() if "truth" in line and "000.jpg" in line]
    assert row.count(said.strip()) == 2
    assert "one image at a time" in told

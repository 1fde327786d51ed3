"""Progress in a job's log: a line now and then."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mgpt4_hpc.cli.shared import progress as module


def test_a_log_gets_a_line_every_half_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with module.progress("packing", "shards") as report:
        for second in range(100):
            now[0] = float(second)
            report(second, 200)
    assert capsys.readouterr().err.splitlines() == ["packing: 15%", "packing: 30%", "packing: 45%"]

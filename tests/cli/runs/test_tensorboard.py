"""``tensorboard``: what it prints; the server is started in tests/integration."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.launch.side_jobs.tensorboard import OPENING, TensorBoard
from tests.cli.fakes import Mgpt4
from tests.cli.synthetic import make_run


def test_its_link_opens_on_the_losses(
    mgpt4: Mgpt4, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_run(tmp_path / "runs")
    for step in ("start", "serve"):
        monkeypatch.setattr(TensorBoard, step, lambda server: None)
    ended = mgpt4("tensorboard", "one", "--port", "6123")
    assert ended.code == 0, ended.err
    first, second = ended.out.splitlines()
    assert first == f"TensorBoard of 1 run: http://localhost:6123/{OPENING}"
    assert "on your own machine, first: ssh -N -L 6123:localhost:6123 " in second

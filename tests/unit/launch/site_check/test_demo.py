"""Two demos in one folder; what a demo does is in ``tests/integration/test_demo.py``."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mgpt4_hpc.errors import RunLocked
from mgpt4_hpc.launch.site_check.demo import _alone_in


def test_a_second_demo_is_refused_and_missing_locks_are_no_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with _alone_in(tmp_path / "demo"):
        with pytest.raises(RunLocked, match="a demo is running in"), _alone_in(tmp_path / "demo"):
            pass

        def no_locks(*of: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr("fcntl.flock", no_locks)
        with _alone_in(tmp_path / "demo"):
            pass

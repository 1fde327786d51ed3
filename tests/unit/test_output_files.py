"""Without file locks work continues."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from mgpt4_hpc.data.sources.download import IMG2DATASET, Download, Effort
from mgpt4_hpc.errors import DataError
from mgpt4_hpc.output_files import lock
from tests.unit.data.sources.download_cases import (
    SMALL,
    fake_environment,
    write_list,
)


def test_without_locks_work_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download = Download([write_list(tmp_path / "0.parquet", 10)], tmp_path / "out", SMALL)
    python = fake_environment(tmp_path / "good", f"echo {IMG2DATASET.version}") / "bin" / "python"
    parts = (tmp_path / "out" / ".download" / "00000-00001.lock").open("w")
    with parts, (tmp_path / "env.lock").open("w") as installs:
        assert lock(parts) and lock(installs)
        with pytest.raises(DataError, match="another process does this part"):
            download.run(python, Effort(1, 1))

        def no_locks(*of: object) -> None:
            raise OSError(errno.ENOSYS, "Function not implemented")

        monkeypatch.setattr("fcntl.flock", no_locks)
        with pytest.raises(DataError, match="could not be written"):
            download.run(python, Effort(1, 1))
        # A stand-in for venv and pip, which has the version as soon as it is there.
        script = f'mkdir -p "$3/bin"; cp {python} "$3/bin/python"'
        maker = fake_environment(tmp_path / "maker", script) / "bin" / "python"
        monkeypatch.setattr("sys.executable", str(maker))
        assert (
            IMG2DATASET.ensure_environment(tmp_path / "env") == tmp_path / "env" / "bin" / "python"
        )

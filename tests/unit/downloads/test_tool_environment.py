"""Tests of ``downloads/tool_environment.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.downloads.tool_environment import Tool
from mgpt4_hpc.errors import DataError
from tests.unit.data.sources.download_cases import (
    fake_environment,
)

TOOL = Tool("img2dataset", "1.47.0")


def test_an_environment_made_by_hand_is_used_and_another_version_refused(tmp_path: Path) -> None:
    good = fake_environment(tmp_path / "good", f"echo {TOOL.version}")
    assert TOOL.ensure_environment(good) == good / "bin" / "python"
    with pytest.raises(DataError, match=f"has img2dataset 1.0, needed is {TOOL.version}"):
        TOOL.ensure_environment(fake_environment(tmp_path / "old", "echo 1.0"))
    assert TOOL.default_environment({"MGPT4_IMG2DATASET_ENV": "/x"}) == Path("/x")
    assert TOOL.default_environment({"XDG_CACHE_HOME": "/c"}) == Path(
        f"/c/mgpt4/img2dataset-{TOOL.version}"
    )


def test_without_network_the_commands_to_make_it_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A Python that makes an environment whose pip cannot reach anything.
    offline = "#!/bin/sh\\necho 'ERROR: No matching distribution found' >&2; exit 1\\n"
    script = f'mkdir -p "$3/bin"; touch "$3/pyvenv.cfg"; printf "{offline}" > "$3/bin/python"'
    maker = fake_environment(tmp_path / "maker", f'{script}; chmod +x "$3/bin/python"')
    monkeypatch.setattr("sys.executable", str(maker / "bin" / "python"))
    said: list[str] = []
    for _ in range(2):  # what the first left over is no obstacle
        with pytest.raises(DataError, match="No matching distribution") as caught:
            TOOL.ensure_environment(tmp_path / "env", say=said.append)
        assert f"pip install img2dataset=={TOOL.version}" in caught.value.fix
    assert len(said) == 2
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").touch()
    with pytest.raises(DataError, match="no virtual environment"):
        TOOL.ensure_environment(tmp_path / "full")
    assert (tmp_path / "full" / "thesis.tex").exists()

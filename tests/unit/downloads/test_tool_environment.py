"""Tests of ``downloads/tool_environment.py``."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mgpt4_hpc.downloads.tool_environment import Tool
from mgpt4_hpc.errors import DataError
from tests.unit.data.sources.download_cases import (
    fake_environment,
)

TOOL = Tool("img2dataset", "1.47.0", also=("openai>=2,<4",))


def test_an_environment_made_by_hand_is_used_and_another_version_refused(tmp_path: Path) -> None:
    good = fake_environment(tmp_path / "good", f"echo {TOOL.version}")
    assert TOOL.ensure_environment(good) == good / "bin" / "python"
    old = fake_environment(tmp_path / "it's old", 'test "$2" = pip && echo "$@" || echo 1.0')
    with pytest.raises(DataError, match=f"has img2dataset 1.0, needed is {TOOL.version}") as caught:
        TOOL.ensure_environment(old)
    command = caught.value.fix.rpartition(", or name")[0]
    shown = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=tmp_path)
    assert shown.stdout == f"-m pip install img2dataset=={TOOL.version} openai>=2,<4\n"
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
        assert f"pip install img2dataset=={TOOL.version} 'openai>=2,<4'" in caught.value.fix
    assert len(said) == 2


@pytest.mark.parametrize("python", ["lacks the tool", "does not start", "is none"])
def test_an_environment_that_was_not_begun_here_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, python: str
) -> None:
    maker = fake_environment(tmp_path / "maker", 'mkdir -p "$3"; exit 1')
    monkeypatch.setattr("sys.executable", str(maker / "bin" / "python"))
    work = fake_environment(tmp_path / "work", "exit 1")
    if python != "lacks the tool":
        (work / "bin" / "python").unlink()
    if python == "does not start":
        (work / "bin" / "python").symlink_to(tmp_path / "python3.9")  # is not on this node
    if python != "is none":
        (work / "pyvenv.cfg").touch()
    (work / "thesis.tex").touch()
    with pytest.raises(DataError, match="work has no img2dataset, or its Python does not start"):
        TOOL.ensure_environment(work)
    assert (work / "thesis.tex").exists()


def test_an_environment_that_was_completed_by_hand_is_no_longer_ours(tmp_path: Path) -> None:
    folder = fake_environment(tmp_path / "env", f"echo {TOOL.version}")
    (folder / ".mgpt4-installing").touch()
    python = TOOL.ensure_environment(folder)
    python.write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(DataError, match="has no img2dataset"):
        TOOL.ensure_environment(folder)
    assert python.exists()

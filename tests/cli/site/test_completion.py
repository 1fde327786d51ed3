"""``completion``: what it prints, and what the shell then offers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.launch.runs.sweep_dir import SweepDir, create_sweep
from tests.cli.fakes import Mgpt4
from tests.cli.synthetic import make_run

PROBE = """
import atexit, sys
heavy = ("torch", "pydantic", "submitit")
atexit.register(lambda: print("HEAVY", [n for n in heavy if n in sys.modules], file=sys.stderr))
from mgpt4_hpc.cli.main import main
sys.argv[0] = "mgpt4"
main()
"""


def complete(words: str, environ: dict[str, str] | None = None) -> list[str]:
    """What bash offers behind these words; the last one is being typed."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env={
            **os.environ,
            "_MGPT4_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(len(words.split(" ")) - 1),
            **(environ or {}),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert "HEAVY []" in done.stderr, done.stderr
    return [line.partition(",")[2] for line in done.stdout.splitlines() if line]


@pytest.mark.slow
def test_completion_of_commands_and_runs_is_right_and_imports_nothing_heavy(
    tmp_path: Path,
) -> None:
    for name in ("stage1-a", "stage1-b", "other"):
        make_run(tmp_path / "my runs", name)
    (tmp_path / "my runs" / "stage1-no-run").mkdir()
    environ = {"MGPT4_RUNS_DIR": str(tmp_path / "my runs")}
    assert complete("mgpt4 h") == ["history"]
    assert complete("mgpt4 logs stage1-", environ) == ["stage1-a", "stage1-b"]
    assert complete("mgpt4 rm stage1-a st", environ) == ["stage1-b"]
    assert complete("mgpt4 status --js", environ) == ["--json"]
    sweep = SweepDir.of("stage1-sweep", tmp_path / "my runs")
    create_sweep(sweep, [], [], "slurm")
    assert complete("mgpt4 status stage1-", environ) == ["stage1-a", "stage1-b", "stage1-sweep"]
    assert complete("mgpt4 logs stage1-", environ) == ["stage1-a", "stage1-b"], "of one run"


def test_completion_without_runs(tmp_path: Path) -> None:
    assert complete("mgpt4 logs x", {"MGPT4_RUNS_DIR": str(tmp_path / "none")}) == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_what_is_printed_is_what_that_shell_reads(mgpt4: Mgpt4, shell: str) -> None:
    text = mgpt4("completion", shell).out
    assert "_MGPT4_COMPLETE" in text
    if shutil.which(shell):
        done = subprocess.run([shell, "-n"], input=text, text=True, capture_output=True)
        assert (done.returncode, done.stderr) == (0, "")


def test_another_shell(mgpt4: Mgpt4) -> None:
    ended = mgpt4("completion", "tcsh")
    assert ended.code == 2
    assert "bash" in ended.err

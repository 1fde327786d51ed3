"""What a shell's TAB offers, as click's own bash completion asks for it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.cli.fakes import FakeSlurm, Mgpt4
from tests.cli.synthetic import make_run

PRECISION = "model.vision_precision"


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("submit --config toy", {"toy-stage1", "toy-stage2", "toy-stage3"}),
        ("submit --after on", {"one"}),
        ("submit --from on", {"one"}),
        ("chat --checkpoint o", {"one"}),
        ("compare o", {"one"}),
        ("config show stage1-l", {"stage1-llama2-7b"}),
        ("config show on", {"one"}),
        ("submit --set train.warmup_st", {"train.warmup_start_lr=", "train.warmup_steps="}),
        ("submit --set warmup_ste", {"warmup_steps="}),
        (f"resume one --set {PRECISION}=f", {f"{PRECISION}=fp16", f"{PRECISION}=fp32"}),
        ("submit --set model.compile=", {"model.compile=true", "model.compile=false"}),
        ("submit --site example-a", {"example-a100"}),
        ("drill --partition a", {"a100"}),
        ("submit --set no_such_setting=", set()),
    ],
)  # fmt: skip
def test_values(
    words: str,
    offered: set[str],
    mgpt4: Mgpt4,
    slurm: FakeSlurm,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    make_run(tmp_path / "runs")
    slurm.sinfo = "a100\nv100\n"  # type: ignore[attr-defined]
    monkeypatch.setenv("COMP_WORDS", f"mgpt4 {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    monkeypatch.setenv("_MGPT4_COMPLETE", "bash_complete")
    told = mgpt4().out
    assert {line.removeprefix("plain,") for line in told.split()} == offered


def test_a_file_where_nothing_else_fits(mgpt4: Mgpt4, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMP_WORDS", "mgpt4 submit --config mine")
    monkeypatch.setenv("COMP_CWORD", "3")
    monkeypatch.setenv("_MGPT4_COMPLETE", "bash_complete")
    assert mgpt4().out == "file,mine\n"


def test_bash_takes_a_setting_and_its_value_for_one_word(mgpt4: Mgpt4) -> None:
    script = mgpt4("completion", "bash").out
    told = subprocess.run(
        ["bash", "-c", f'{script}\necho "$COMP_WORDBREAKS"'], capture_output=True, text=True
    )
    assert told.returncode == 0 and "=" not in told.stdout

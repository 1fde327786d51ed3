"""``docs/own-data.md``, typed line by line in a folder with small files of one's own."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from mgpt4_hpc.cli.main import main
from mgpt4_hpc.config.run_config_file import read_config
from mgpt4_hpc.run_dir import RunDir
from tests.support.examples import Shell, Typed
from tests.support.tiny_world import REFERENCE, TinyWorld
from tests.unit.train.test_other_llms import FAMILIES, write_llm

PAGE = (Path(__file__).parents[2] / "docs" / "own-data.md").read_text()
SMALL = {
    "MGPT4_MODEL__PRECISION": "fp32",
    "MGPT4_DATA__NUM_WORKERS": "0",
    "MGPT4_DATA__VAL_FRACTION": "0.2",
    "MGPT4_TRAIN__GLOBAL_BATCH_SIZE": "8",
    "MGPT4_TRAIN__MICRO_BATCH_SIZE": "8",
    "MGPT4_TRAIN__WARMUP_STEPS": "1",
    "MGPT4_TRAIN__EVAL_EVERY_STEPS": "2",
    "MGPT4_TRAIN__DEVICE": "cpu",
    "MGPT4_TRAIN__NUM_THREADS": "1",
    "MGPT4_LAUNCH__CPUS_PER_GPU": "1",
}
"""What makes the page's runs ones of seconds; all else is as it says."""


def type_line(line: str, shell: Shell, capfd: pytest.CaptureFixture[str]) -> str:
    """What a line prints; one that needs no shell and starts no job runs in this process."""
    if "|" not in line and "--wait" not in line:
        words = shlex.split(line.replace("submit", "submit --executor local"))[1:]
        with pytest.raises(SystemExit) as left:
            main(words)
        printed = capfd.readouterr()
        assert left.value.code == 0, (line, printed)
        return printed.out + printed.err
    # The machine of the tests may have a Slurm, for which there are tests of their own.
    line = line.replace("submit", "submit --executor local")
    typed = Typed(line, shell, subprocess.DEVNULL)
    typed.ends(0, timeout_s=300)
    return typed.out + typed.err


def test_the_page_from_the_first_line_to_the_last(
    tiny_world: TinyWorld,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shell = Shell(tmp_path, SMALL)
    write_llm(tmp_path / "my-llm", FAMILIES["llama3"])
    (tmp_path / "my-llm" / "chat_template.jinja").write_text("{{ '<|start_header_id|>' }}")
    shutil.copytree(tiny_world.shards("laion"), tmp_path / "my-pairs")
    shutil.copytree(tiny_world.align, tmp_path / "my-descriptions")
    shutil.copy(tiny_world.align / "image" / "0.jpg", tmp_path / "photo.jpg")
    for name in ("eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth"):
        shutil.copy(REFERENCE / name, tmp_path)
    shutil.copy(tiny_world.weights / "architecture.json", tmp_path)
    for name, settings in re.findall(r"```yaml\n# (\S+)\n(.*?)```", PAGE, re.DOTALL):
        (tmp_path / name).write_text(settings)

    monkeypatch.chdir(tmp_path)
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    shown = re.sub(r"```yaml.*?```", "", PAGE, flags=re.DOTALL)
    lines = "".join(re.findall(r"```\n(.*?)```", shown, re.DOTALL)).splitlines()
    printed = {line: type_line(line, shell, capfd) for line in lines}

    told = {line.split(" --")[0]: text for line, text in printed.items()}
    for line in ("mgpt4 weights import", "mgpt4 weights check my-bundle"):
        assert "set it to llama3, or to model" in told[line]
    (dry, *_) = (text for line, text in printed.items() if "--dry-run" in line)
    assert re.search(r"train.max_epochs 1 is train.max_steps \d+", dry)
    assert "another model's format" not in dry, "the settings name the model's own"
    for name, most in (("my-stage1", 12), ("my-stage2", 12)):
        run = RunDir(tmp_path / "runs" / name)
        config = read_config(run.config_file).config
        assert 0 < config.train.max_steps <= most and config.text.template == "llama3"
        assert f"{name}" in printed["mgpt4 status my-stage1 my-stage2"]
    assert "held-out loss" in told["mgpt4 eval my-stage2"]
    assert (tmp_path / "my-projector.pth").is_file()
    assert (tmp_path / "reports" / "my-stage1.html").is_file()

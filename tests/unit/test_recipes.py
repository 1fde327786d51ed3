"""The recipes of CONTRIBUTING.md, followed: in a copy of the package, or through what they name."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "mgpt4_hpc"


def recipe(title: str) -> list[str]:
    """The package's files that a recipe names."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = text.partition(f"**{title}")[2].partition("\n**")[0].partition("\n## ")[0]
    steps = re.findall(r"^\d+\. (.*)$", section, re.MULTILINE)
    return [name for step in steps for name in re.findall(r"`([\w/]+\.py)`", step)]


class Copy:
    """A copy of the package that a recipe changes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.touched: set[str] = set()
        weights = shutil.ignore_patterns("__pycache__", "toy_world")
        shutil.copytree(PACKAGE, folder / "mgpt4_hpc", ignore=weights)
        for name in ("configs", "slurm"):
            (folder / name).symlink_to(ROOT / name)

    def edit(self, name: str, old: str, new: str) -> None:
        path = self.folder / "mgpt4_hpc" / name
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{name}: {old!r}"
        path.write_text(text.replace(old, new), encoding="utf-8")
        self.touched.add(name)

    def add(self, name: str, text: str) -> None:
        (self.folder / "mgpt4_hpc" / name).write_text(text, encoding="utf-8")
        self.touched.add(name)

    def run(self, code: str, *arguments: object) -> str:
        words = [sys.executable, "-c", code, *map(str, arguments)]
        environ = {**os.environ, "PYTHONPATH": str(self.folder)}
        done = subprocess.run(
            words, cwd=self.folder, env=environ, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy(tmp_path / "copy")


@pytest.mark.parametrize(
    "title",
    ["A language model", "A vision tower", "A data format", "A stop signal", "A setting",
     "A metric", "A TensorBoard tag"],
)  # fmt: skip
def test_a_recipe_names_at_most_four_files_that_exist(title: str) -> None:
    named = recipe(title)
    assert 1 <= len(named) <= 4
    assert [name for name in named if "NAME" not in name and not (PACKAGE / name).is_file()] == []


@pytest.mark.slow
def test_a_setting(copy: Copy) -> None:
    line = "    max_tokens: Positive = 2048\n"
    copy.edit("config/schema.py", line, f'    example: int = 3\n    """An example."""\n{line}')
    copy.edit("config/load.py", '"text": (', '"text": ("example", ')
    told = copy.run(
        "from mgpt4_hpc.config.load import config_digest, load_config\n"
        "from mgpt4_hpc.config.describe import describe_keys\n"
        "for values in ({}, {'text.example': 3}, {'text.example': 4}):\n"
        "    print(config_digest(load_config('stage1-vicuna7b', overrides=values).config))\n"
        "print([one.doc for one in describe_keys() if one.key == 'text.example'])\n"
    ).split("\n")
    from mgpt4_hpc.config.load import config_digest, load_config

    assert told[0] == told[1] == config_digest(load_config("stage1-vicuna7b").config) != told[2]
    assert told[3] == "['An example.']"
    assert copy.touched <= set(recipe("A setting"))


@pytest.mark.slow
def test_a_stop_signal(copy: Copy) -> None:
    copy.edit("stop_signals.py", '"HUP"]', '"HUP", "XCPU"]')
    told = copy.run(
        "import sys; from pathlib import Path\n"
        "from mgpt4_hpc.config.load import load_config\n"
        "from mgpt4_hpc.launch.job.launcher_script import write_shim\n"
        "from mgpt4_hpc.launch.submit.submit_run import render\n"
        "from mgpt4_hpc.run_dir import RunDir\n"
        "values = {'launch.stop_signals': ['XCPU']}\n"
        "resolved = load_config('stage1-vicuna7b', overrides=values)\n"
        "run = RunDir(Path(sys.argv[1])); run.slurm.mkdir(parents=True)\n"
        "print(resolved.config.launch.stop_signals, render(run, resolved))\n"
        "print(write_shim(run.slurm / 'python').read_text())\n",
        copy.folder / "run",
    )
    assert "('XCPU',)" in told and "--block-signal=XCPU" in told
    assert re.search(r"^trap : .*XCPU", told, re.MULTILINE)
    assert copy.touched == set(recipe("A stop signal"))


@pytest.mark.slow
def test_a_tensorboard_tag(copy: Copy) -> None:
    row = "| `run/attempt` |"
    copy.edit("telemetry/tags.py", row, f"| `run/example` | an example | |\n{row}")
    copy.edit("telemetry/tags.py", 'GOODPUT = "', 'EXAMPLE = "run/example"\nGOODPUT = "')
    drawn = "            tags.TRAIN_LR: lr,\n"
    copy.edit("train/loop.py", drawn, f"{drawn}            tags.EXAMPLE: 1.0,\n")
    told = copy.run(
        "import sys; from pathlib import Path\n"
        "from mgpt4_hpc.telemetry import tags\n"
        "from mgpt4_hpc.telemetry.report import read_curves\n"
        "from mgpt4_hpc.telemetry.tensorboard import TensorBoardWriter\n"
        "writer = TensorBoardWriter(Path(sys.argv[1]))\n"
        "writer.scalars(7, {tags.EXAMPLE: 0.5}); writer.close()\n"
        "print(read_curves(Path(sys.argv[1]))[tags.EXAMPLE], tags.EXAMPLE in tags.ALL)\n",
        copy.folder / "curves",
    )
    assert told == "[(7, 0.5)] True\n"
    assert copy.touched == set(recipe("A TensorBoard tag"))


PACK = '''
"""Pairs in a table: one line ``image<TAB>caption`` each."""
import io
import tarfile


def is_table(source):
    return (source / "pairs.tsv").is_file()


def pack_table(source, out):
    out.mkdir(parents=True, exist_ok=True)
    with tarfile.open(out / "0.tar", "w") as tar:
        for number, line in enumerate((source / "pairs.tsv").read_text().splitlines()):
            image, caption = line.split("\\t")
            data = (source / image).read_bytes()
            for suffix, content in (("jpg", data), ("txt", caption.encode())):
                member = tarfile.TarInfo(f"{number}.{suffix}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return [out / "0.tar"]
'''


@pytest.mark.slow
def test_a_data_format(copy: Copy, tmp_path: Path) -> None:
    from PIL import Image

    copy.add("data/sources/pack_NAME.py", PACK)
    copy.edit(
        "data/sources/prepare.py",
        "    if is_align_folder(source):\n",
        "    if is_table(source):\n"
        "        shards = pack_table(source, work_dir / f'{name}-shards')\n"
        "    elif is_align_folder(source):\n",
    )
    copy.edit(
        "data/sources/prepare.py",
        "from mgpt4_hpc.data.sources.pack import",
        "from mgpt4_hpc.data.sources.pack_NAME import is_table, pack_table\n"
        "from mgpt4_hpc.data.sources.pack import",
    )
    source = tmp_path / "pairs"
    source.mkdir()
    Image.new("RGB", (8, 8), "red").save(source / "a.jpg")
    (source / "pairs.tsv").write_text("a.jpg\ta red square\n")
    told = copy.run(
        "import sys; from pathlib import Path\n"
        "from mgpt4_hpc.data.index.index import ShardIndex\n"
        "from mgpt4_hpc.data.reading.reader import SampleReader\n"
        "from mgpt4_hpc.data.sources.prepare import prepare_source\n"
        "made = prepare_source('pairs', Path(sys.argv[1]), None, Path(sys.argv[2]))\n"
        "sample = SampleReader([ShardIndex.open(made)]).read(0, 0)\n"
        "print(sample.text, len(sample.images))\n",
        source,
        tmp_path / "work",
    )
    assert "a red square" in told and told.endswith("1\n")
    assert copy.touched == set(recipe("A data format"))


def test_a_metric() -> None:
    pytest.importorskip("torch")
    from mgpt4_hpc.evaluation import suites

    source = Path(suites.__file__).read_text(encoding="utf-8")
    old = '        "empty": is_empty(text),\n'
    assert source.count(old) == 1
    edited = types.ModuleType("edited")
    edited.__dict__["__name__"] = suites.__name__
    exec(source.replace(old, f'{old}        "long": len(text) > 5,\n'), edited.__dict__)  # noqa: S102
    scores: Callable[..., dict[str, float]] = edited.__dict__["failure_scores"]
    assert scores("A dog sits.", True, "What?")["long"] == 1.0
    assert scores("A dog sits.", True, "What?").keys() - {"long"} == (
        suites.failure_scores("A dog sits.", True, "What?").keys()
    )
    assert "evaluation/suites.py" in recipe("A metric")

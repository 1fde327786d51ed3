"""The examples of ``docs/cli.md`` that need no cluster, as they are shown, one process for all."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.launch.runs.sweep_dir import SweepDir, create_sweep
from tests.cli.fakes import FakeSlurm, Mgpt4
from tests.cli.synthetic import place_with_runs, write_original, write_pairs
from tests.support.examples import LINES, each_executes, lines_of, parse
from tests.support.tiny_world import REFERENCE, TinyWorld, toy_sized
from tests.support.trained import make_trained_run


@pytest.fixture
def place(world: TinyWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the examples find the runs that they name."""
    monkeypatch.setenv("MGPT4_WEIGHTS", str(world.weights))
    return place_with_runs(tmp_path)


OF_RUNS = [
    *("mgpt4 status", "mgpt4 logs -f", "mgpt4 logs stage1-vicuna7b --rank 3 --attempt 2"),
    *("mgpt4 cancel stage1-vicuna7b --save", *lines_of("resume", "keep", "report", "version")),
    *lines_of("history", "usage", "ls", "completion"),
    *lines_of("config keys", "config presets", "config sites", "config schema"),
    *lines_of("config show", "config explain"),
    "mgpt4 rm stage1-vicuna7b --dry-run",
    "mgpt4 rm first-try second-try --yes",
]


@pytest.mark.slow
@each_executes(*([line] for line in OF_RUNS))
def test_of_runs_that_are_over(
    lines: list[str], mgpt4: Mgpt4, slurm: FakeSlurm, place: Path
) -> None:
    run_all(lines, mgpt4, place)
    assert (place / "runs" / "first-try").exists() == ("--yes" not in lines[0])


@pytest.fixture
def material(
    world: TinyWorld, tmp_path: Path, mgpt4: Mgpt4, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder with the data, weights and trained runs that the examples name."""
    (tmp_path / "data").mkdir()
    for name, source in (("laion", world.shards("laion")), ("cc_sbu", world.shards("cc_sbu")),
                         ("cc_sbu_align", world.align),
                         ("vicuna-7b", REFERENCE / "llm"), ("data/align", world.align),
                         ("coco/val2014", world.align / "image"),
                         ("train2017", world.align / "image"),
                         ("my-images-and-texts", world.align / "image")):  # fmt: skip
        shutil.copytree(source, tmp_path / name)
    (tmp_path / "my-images-and-texts" / "0.txt").write_text("A picture.")
    for number in range(2, 1256):
        os.link(tmp_path / "cc_sbu" / "00000.tar", tmp_path / "cc_sbu" / f"{number:05d}.tar")
    for name in ("eva_vit_g.pth", "blip2_pretrained_flant5xxl.pth"):
        shutil.copy(REFERENCE / name, tmp_path)
    shutil.copy(world.weights / "architecture.json", tmp_path)
    shutil.copy(world.align / "image" / "0.jpg", tmp_path / "photo.jpg")
    for name in ("ccs", "laion"):
        write_pairs(tmp_path / f"{name}_synthetic_filtered_large.json")
    captions = {image.name: ["a red dog"] for image in (tmp_path / "coco/val2014").iterdir()}
    (tmp_path / "captions_val2014.json").write_text(json.dumps(captions))
    said = [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "A red dog."}]
    talk = [{"id": "0", "image": "0.jpg", "conversations": said}]
    (tmp_path / "llava_instruct_150k.json").write_text(json.dumps(talk))
    write_original(tmp_path)
    runs = [
        make_trained_run(world, tmp_path / "runs" / f"stage{stage}-vicuna7b", stage, seed=stage)
        for stage in (1, 2)
    ]
    create_sweep(SweepDir.of("my-sweep", tmp_path / "runs"), runs, [{}] * 2, "local")
    sources = {"vit": "eva_vit_g.pth", "qformer": "blip2_pretrained_flant5xxl.pth",
               "llm": "vicuna-7b"}  # fmt: skip
    (tmp_path / "sources.json").write_text(json.dumps({
        "variants": {"vicuna7b": {part: part for part in sources}},
        "sources": {part: {"path": str(tmp_path / name)} for part, name in sources.items()},
    }))  # fmt: skip
    monkeypatch.setenv("MGPT4_WEIGHT_SOURCES", str(tmp_path / "sources.json"))
    for name, value in toy_sized(world).items():
        monkeypatch.setenv(name, value)
    return tmp_path


WITH_MATERIAL = [
    [*lines_of("weights import"), *lines_of("weights check")],
    lines_of("weights fetch"),
    lines_of("weights export"),
    [
        "mgpt4 data index 'cc_sbu/{00000..01255}.tar' --out cc_sbu.index --workers 8",
        *lines_of("data check"),
        "mgpt4 data stats cc_sbu.index --contact-sheet cc_sbu.png",
    ],
    [
        *lines_of("data pack"),
        "mgpt4 data stats cc_sbu_align_shards --tokenizer vicuna-7b --limit 0",
    ],
    lines_of("data convert"),
    [
        "mgpt4 data encode stage2-vicuna7b --set data.paths.cc_sbu_align=/data/align "
        "--out /data/features"
    ],
    lines_of("config import"),
    [
        "mgpt4 eval stage2-vicuna7b --suite caption --images coco/val2014 "
        "--references captions_val2014.json --limit 500",
        "mgpt4 eval stage2-vicuna7b --every-checkpoint --images coco/val2014 --limit 20",
    ],
    lines_of("compare"),
    ["echo 'What is this?' | mgpt4 chat photo.jpg --checkpoint runs/stage2-vicuna7b"],
]
MADE = {
    "weights import": "data/vicuna7b-bundle/bundle.json",
    "weights fetch": "data/fetched-bundle/bundle.json",
    "weights export": "mine.pth",
    "data index": "cc_sbu.png",
    "data pack": "cc_sbu_align_shards/00000.tar",
    "data convert": "laion_urls/00000.parquet",
    "data encode": "data/features",
    "config import": "mine.yaml",
    "compare": "stages.html",
}


@pytest.mark.slow
@each_executes(*WITH_MATERIAL)
def test_of_data_weights_and_answers(
    lines: list[str], mgpt4: Mgpt4, material: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_all(lines, mgpt4, material, monkeypatch)
    made = MADE.get(LINES[lines[0]])
    assert made is None or (material / made).exists()


def run_all(
    lines: list[str], mgpt4: Mgpt4, place: Path, monkeypatch: pytest.MonkeyPatch | None = None
) -> None:
    for line in lines:
        words = parse(line, place)
        if monkeypatch is not None:
            monkeypatch.setattr(sys, "stdin", io.StringIO(words.stdin))
        ended = mgpt4(*words.arguments)
        assert ended.code == 0, (line, ended.out, ended.err)
        # cron mails whatever is printed.
        assert ended.out or words.arguments[0] == "keep", f"{line} prints nothing"
        if words.stdout:
            Path(words.stdout).write_text(ended.out)

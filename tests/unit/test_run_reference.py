from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.config.load import read_layers
from mgpt4_hpc.errors import ConfigError, NoSuchRun
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.run_reference import (
    best_validation,
    find_reference,
    find_run,
    find_whole_run,
    located_path,
)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    made = RunDir(tmp_path / "runs" / "one")
    made.create({"name": "one", "stage": 1})
    for step in (5, 20):
        store = CheckpointStore(made.checkpoints)
        store.commit(step, {"projector": {"llama_proj.weight": torch.zeros(1)}}, {})
    return made


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("one", None),
        ("{run}", None),
        ("one@5", 5),
        ("one@step-00000005", 5),
        ("{run}@20", 20),
        ("one/checkpoints/step-5", 5),
        ("one/checkpoints/step-00000005", 5),
        ("{run}/checkpoints/step-00000005/", 5),
        ("{run}/checkpoints/step-20", 20),
    ],
)
def test_every_way_to_name_a_run_names_the_same(run: RunDir, text: str, step: int | None) -> None:
    found = find_reference(text.format(run=run.path), run.path.parent)
    assert (found.run, found.step) == (run, step)
    expected = run.path if step is None else run.checkpoints / f"step-{step:08d}"
    assert found.path == expected
    assert find_run(text.format(run=run.path), run.path.parent) == run


def test_the_best_step_is_that_of_the_lowest_held_out_loss(run: RunDir) -> None:
    with pytest.raises(NoSuchRun, match="has no held-out loss"):
        find_reference("one@best", run.path.parent)
    with pytest.raises(NoSuchRun, match=r"(?s)step beest; did you mean best\?.*5, 20; @best is"):
        find_reference("one@beest", run.path.parent)
    store = CheckpointStore(run.checkpoints)
    for step, best in ((30, 20), (40, 25)):
        store.commit(step, {"projector": {}}, {"best_step": best, "best_loss": 1.5})
        if best == 20:
            assert find_reference("one@best", run.path.parent).step == 20
    run.config_file.write_text("checkpoint:\n  keep_best: caption  # file x.yaml\n")
    meta = {"best_step": 25, "best_loss": 1.5, "best_scores": {"caption": [30, 0.7]}}
    store.commit(41, {"projector": {}}, meta)
    assert best_validation(run, 41) == (30, 0.7)
    assert find_reference("one@best", run.path.parent).step == 30
    # The trainer records what is the best where it is the highest.
    meta["best_scores"] = {"failure": [30, -0.25]}
    store.commit(42, {"projector": {}}, meta)
    run.config_file.write_text("checkpoint:\n  keep_best: failure\n")
    assert best_validation(run, 42) == (30, 0.25)
    damaged = run.checkpoints / "step-00000043" / "manifest.json"
    damaged.parent.mkdir()
    damaged.write_text("{")
    assert find_reference("one@best", run.path.parent).step == 30
    run.config_file.write_text("checkpoint:\n  keep_best: val/loss\n")
    with pytest.raises(NoSuchRun, match=r"(?s)has no checkpoint of step 25.*checkpoint.keep_best"):
        find_reference("one@best", run.path.parent)


def test_a_path_is_relative_to_where_one_is(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.checkpoints)
    found = find_reference("step-00000005", Path("nowhere"))
    assert (found.run, found.step) == (run, 5)
    monkeypatch.chdir(run.path.parent)
    assert find_reference("one@5", Path("nowhere")).path == run.checkpoints / "step-00000005"


def test_a_checkpoint_outside_of_a_run_is_weights_and_no_run(run: RunDir, tmp_path: Path) -> None:
    copied = tmp_path / "kept"
    (run.checkpoints / "step-00000005").rename(copied)
    found = find_reference(str(copied), run.path.parent)
    assert found.run is None and found.path == copied
    with pytest.raises(NoSuchRun, match="lies in no run"):
        find_run(str(copied), run.path.parent)


def test_names_with_an_at_sign_in_their_path_are_found_as_they_are(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "me@site" / "one")
    run.create({"name": "one", "stage": 1})
    assert find_run(str(run.path), tmp_path) == run


def test_what_is_missing_is_named_with_what_there_is(run: RunDir) -> None:
    runs_dir = run.path.parent
    with pytest.raises(NoSuchRun, match="one of the runs there: one"):
        find_run("two", runs_dir)
    with pytest.raises(NoSuchRun, match="no run 'two'"):
        find_run("two@5", runs_dir)
    for text in ("one@7", "one@newest", "one/checkpoints/step-7"):
        with pytest.raises(NoSuchRun, match="of these steps: 5, 20"):
            find_reference(text, runs_dir)
    with pytest.raises(NoSuchRun, match=r"(?s)is one checkpoint.*do this"):
        find_whole_run("one@5", runs_dir, "do this")


def test_the_start_of_a_run_is_named_in_the_same_ways(run: RunDir, tmp_path: Path) -> None:
    runs_dir = run.path.parent

    def start(text: str) -> str | None:
        found = read_layers("toy-stage2", {"model.projector": text}).resolve(runs_dir=runs_dir)
        return found.config.model.projector

    assert start("one") == str(run.path)
    assert (
        start("one@5") == start("one/checkpoints/step-5") == str(run.checkpoints / "step-00000005")
    )
    file = tmp_path / "one.pth"
    file.write_bytes(b"")
    assert start(str(file)) == located_path(str(file), runs_dir) == str(file)
    for text in ("one@7", "one@best", "one/checkpoints/step-7"):
        with pytest.raises(ConfigError, match=r"model\.projector: one has no"):
            start(text)
    with pytest.raises(ConfigError, match="of these steps: 5, 20"):
        start("one@7")
    replaced = read_layers("toy-stage2", {"model.projector": "one@5"})
    replaced.layers[0][1]["model.projector"] = "one@7"
    assert replaced.resolve(runs_dir=runs_dir).config.model.projector == start("one@5")

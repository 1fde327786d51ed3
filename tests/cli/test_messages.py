"""Faults that are told all at once, and in words that help."""

from pathlib import Path

import pytest

from mgpt4_hpc.data.sources.prepare import prepare_source
from mgpt4_hpc.errors import DataError
from tests.cli.fakes import Mgpt4


def test_every_missing_weight_file_is_told_at_once(mgpt4: Mgpt4, tmp_path: Path) -> None:
    given = ("--vit", "a.pth", "--qformer", "b.pth", "--llm", "c", "--projector", "d.pth")
    ended = mgpt4("weights", "import", *given, "--out", tmp_path / "bundle")
    assert ended.code == 2
    for name in ("a.pth", "b.pth", "c", "d.pth"):
        assert f"- {name} does not exist" in ended.err
    assert not (tmp_path / "bundle").exists()


def test_near_names_and_an_output_in_the_way_are_named_with_what_is_missing(
    mgpt4: Mgpt4, tmp_path: Path
) -> None:
    for name in ("my-llm", "there"):
        (tmp_path / name).mkdir()
    parts = ("--vit", tmp_path / "a.pth", "--llm", tmp_path / "my-lm")
    for given in (parts, ("--hf", tmp_path / "my-lm")):
        ended = mgpt4("weights", "import", *given, "--out", tmp_path / "there")
        assert ended.code == 2
        assert "my-lm does not exist; beside it lies my-llm" in ended.err
        assert f"{tmp_path / 'there'} exists already" in ended.err


def test_the_toy_weights_can_be_checked(mgpt4: Mgpt4) -> None:
    assert mgpt4("weights", "check", "toy:weights").code == 0
    assert mgpt4("weights", "check", "toy:none").code == 2


def test_a_folder_that_is_not_there_is_no_missing_shard(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist") as caught:
        prepare_source("align", tmp_path / "cc_sbu_align", None, tmp_path)
    assert "cc_sbu_align folder" in caught.value.fix


def test_a_file_in_the_way_of_a_run(mgpt4: Mgpt4, tmp_path: Path) -> None:
    (tmp_path / "afile").touch()
    ended = mgpt4("train", "--cfg-path", "toy-stage1", "--run-dir", tmp_path / "afile" / "x")
    assert ended.code == 1
    assert "afile cannot be made" in ended.err

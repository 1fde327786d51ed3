"""Which model a command opens, and what it says of it."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from mgpt4_hpc.cli.shared.model_options import locate, say_toy
from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.bundle import bundle_digest
from mgpt4_hpc.model.generation.chat_model import find_source
from mgpt4_hpc.resources import resolve_path
from mgpt4_hpc.run_dir import RunDir
from tests.cli.fakes import Mgpt4
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run, other_weights


@pytest.fixture(scope="session")
def run(world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    return make_trained_run(world, tmp_path_factory.mktemp("trained") / "two")


def test_what_a_toy_knows_is_told_of_toys(run: RunDir, capsys: pytest.CaptureFixture[str]) -> None:
    source = find_source(run.path)
    say_toy(source)
    assert capsys.readouterr().err == ""
    say_toy(dataclasses.replace(source, weights=Path(resolve_path("toy:weights"))))
    assert "one image at a time" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["two", "{run}", "two@12", "two/checkpoints/step-12", "{run}/checkpoints/step-00000012"]
)
def test_each_way_to_name_a_run_opens_its_checkpoint(run: RunDir, name: str) -> None:
    """`chat`, `serve`, `eval` and `compare` find their models by this function."""
    source = locate(name.format(run=run.path), run.path.parent, weights=None, template=None)
    assert (source.step, source.run) == (12, run) and source.projector is not None


def test_another_language_model_than_the_runs_is_a_warning(
    run: RunDir, world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "weights"
    shutil.copytree(world.weights, other)
    locate("two", run.path.parent, weights=str(other), template=None)
    assert "warning" not in capsys.readouterr().err
    file = next((other / "llm").glob("*.safetensors"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    locate("two", run.path.parent, weights=str(other), template=None)
    assert "warning: the projector of" in capsys.readouterr().err


def test_a_bundle_that_a_run_was_not_trained_on_is_named(
    run: RunDir, world: TinyWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other_llm, other, same = (tmp_path / name for name in ("other_llm", "other", "same"))
    other_weights(world, other_llm)
    for folder in (other, same):
        shutil.copytree(world.weights, folder)
    with (other / "llm" / "config.json").open("a") as file:
        file.write("\n")
    digests = f"the digest {bundle_digest(world.weights)}, and that of {other} is"
    for weights, told in (
        (other_llm, f"another language model, that of {world.weights};"),
        (other, f"two step-00000012 was trained on a bundle with {digests}"),
        (same, None),
        (None, None),
    ):
        text = str(weights) if weights else None
        locate("two", run.path.parent, weights=text, template=None)
        printed = capsys.readouterr().err
        assert printed.count("warning: ") == bool(told) and (told or "") in printed, printed


def test_a_bundle_that_was_moved_has_a_way_out(run: RunDir, tmp_path: Path) -> None:
    copy = tmp_path / "two"
    shutil.copytree(run.path, copy)
    config = copy / "config.yaml"
    weights = find_source(run.path).weights
    config.write_text(config.read_text().replace(str(weights), "/moved/bundle"))
    with pytest.raises(WeightsError, match="bundle /moved/bundle, which is not") as raised:
        locate(str(copy), tmp_path, weights=None, template=None)
    assert raised.value.fix == "if it was moved: --weights NEW"


def test_the_projector_of_another_model_is_named(
    mgpt4: Mgpt4, world: TinyWorld, tmp_path: Path
) -> None:
    from mgpt4_hpc.model.bundle.export import export_projector

    torch = pytest.importorskip("torch")
    wrong = export_projector(
        {"weight": torch.zeros(4096, 768), "bias": torch.zeros(4096)},
        tmp_path / "wrong.safetensors",
        fmt="safetensors",
    )
    ended = mgpt4("chat", "--checkpoint", wrong, "--weights", world.weights)
    assert ended.code == 1
    assert "the 7B model (width 4096)" in ended.err


def test_a_damaged_checkpoint_is_not_believed(
    mgpt4: Mgpt4, world: TinyWorld, tmp_path: Path
) -> None:
    run = make_trained_run(world, tmp_path / "damaged")
    path = run.checkpoints / "step-00000012" / "projector.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    ended = mgpt4("chat", "--checkpoint", run.path)
    assert ended.code == 1 and "step-00000012" in ended.err

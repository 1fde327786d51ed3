"""LoRA is saved, resumed and shared by the ranks exactly as the projector is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file

from mgpt4_hpc.cli.model.weights import weights_command
from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.errors import WeightsError
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.model.nn.lora import lora_parameters, read_lora_beside, use_lora
from mgpt4_hpc.model.nn.minigpt4 import build_model
from mgpt4_hpc.run_dir import RunDir
from tests.support.runs import ForkedRanks, curve, final_projector, last_step, wait_until
from tests.support.tiny_world import TinyWorld

pytest.importorskip("peft")


def make_run(world: TinyWorld, path: Path, **settings: object) -> Path:
    file = world.write_config(
        path.with_suffix(".yaml"),
        train__max_steps=30,
        train__global_batch_size=8,
        train__micro_batch_size=2,
        launch__gpus=2,
        lora={"rank": 4},
        **settings,
    )
    run = RunDir(path)
    run.create({"name": path.name, "stage": 1})
    write_config(run.config_file, load_config(file))
    return path


def lora_of(run: Path) -> dict[str, torch.Tensor]:
    return load_file(max((run / "checkpoints").glob("step-*")) / "lora.safetensors")


def test_two_ranks_stopped_and_resumed_end_with_the_same_bits(
    tiny_world: TinyWorld, tmp_path: Path
) -> None:
    ranks = ForkedRanks()
    try:
        alone, broken = (make_run(tiny_world, tmp_path / name) for name in ("alone", "broken"))
        ranks.start(alone, 2)
        assert ranks.wait() == [0, 0]
        pids = ranks.start(broken, 2)
        wait_until(lambda: last_step(broken) >= 2, 60, "step 2")
        ranks.terminate(pids)
        assert ranks.wait() == [75, 75] and last_step(broken) < 30
        ranks.start(broken, 2)
        assert ranks.wait() == [0, 0]
    finally:
        ranks.close()
    ours, theirs = lora_of(broken), lora_of(alone)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(tensor.any() for tensor in ours.values()), "the second matrices were zero at first"
    assert final_projector(broken) == final_projector(alone)
    assert curve(broken) == curve(alone)
    # One rank with the same samples comes to the same values: the ranks' gradients were averaged.
    single = make_run(tiny_world, tmp_path / "single", data__num_workers=0)
    train_alone(single)
    for name, tensor in lora_of(single).items():
        torch.testing.assert_close(tensor, theirs[name], rtol=1e-3, atol=1e-4)
    assert_answers_use_both(tiny_world, single)
    assert_stage_2_takes_both(tiny_world, tmp_path, single)


def train_alone(run: Path) -> None:
    from mgpt4_hpc.distributed import Ranks
    from mgpt4_hpc.train.run import run_training
    from mgpt4_hpc.train.stopping.stop import NeverStop

    run_training(RunDir(run), Ranks(), NeverStop(), claim={})


def assert_answers_use_both(world: TinyWorld, run: Path) -> None:
    model = build_model(open_bundle(world.weights))
    newest = max((run / "checkpoints").glob("step-*"))
    use_lora(model.language_model, read_lora_beside(newest / "projector.safetensors"))
    added = lora_parameters(model.language_model)
    saved = lora_of(run)
    assert all(torch.equal(p, saved[name]) for name, p in added.items())
    # Another projector, trained without: what was added must add nothing any more.
    assert read_lora_beside(world.weights / "eva_vit_g.pth") is None
    use_lora(model.language_model, None)
    assert not any(p.any() for p in added.values())
    result = CliRunner().invoke(
        weights_command,
        ["export", str(run), "--format", "pth", "--out", str(run.with_suffix(".pth"))],
    )
    assert result.exit_code == 0 and "trained together with LoRA" in result.stderr


def assert_stage_2_takes_both(world: TinyWorld, tmp_path: Path, start: Path) -> None:
    settings = {"train__max_steps": 2, "train__warmup_steps": 1, "data__num_workers": 0}
    for name, rank in (("with", 4), ("without", 0)):
        file = world.write_config(tmp_path / f"{name}.yaml", 2, **settings)
        overrides = {"model.projector": str(start), "lora.rank": rank, "train.lr": 1e-9}
        run = RunDir(tmp_path / name)
        run.create({"name": name, "stage": 2})
        write_config(run.config_file, load_config(file, overrides=overrides))
        if rank:
            train_alone(run.path)
        else:
            with pytest.raises(WeightsError, match="was trained together with LoRA"):
                train_alone(run.path)
    for name, tensor in lora_of(tmp_path / "with").items():
        torch.testing.assert_close(tensor, lora_of(start)[name], rtol=0, atol=1e-5)

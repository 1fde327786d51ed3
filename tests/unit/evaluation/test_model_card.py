"""A model card has what a run did, and no paths of the machine that did it."""

from __future__ import annotations

import re
from pathlib import Path

from mgpt4_hpc.evaluation.model_card import model_card
from mgpt4_hpc.model.bundle.bundle import open_bundle
from mgpt4_hpc.run_dir import write_json
from mgpt4_hpc.telemetry import tags
from mgpt4_hpc.telemetry.tensorboard import TensorBoardWriter
from tests.support.tiny_world import TinyWorld
from tests.support.trained import make_trained_run


def test_data_settings_curve_scores_and_licences(tiny_world: TinyWorld, tmp_path: Path) -> None:
    run = make_trained_run(tiny_world, tmp_path / "one", 1, step=20)
    curves = TensorBoardWriter(run.tensorboard)
    for step in range(1, 31):
        curves.scalars(step, {tags.TRAIN_LOSS: 5 - step / 10})
    curves.scalars(20, {tags.VAL_LOSS: 3.25})
    curves.close()
    scores = TensorBoardWriter(run.tensorboard / "eval")
    scores.scalars(20, {"eval/coco/detail_failing": 0.125})
    scores.close()
    bundle = open_bundle(tiny_world.weights)
    card = model_card("mine", bundle, end_symbol="###", run=run, step=20)
    assert card.startswith("---\nlibrary_name: transformers\n") and "\n# mine\n" in card
    assert "- laion: 75%" in card and "- cc_sbu: 25%" in card
    assert "| train.lr | 0.01 |" in card
    assert "| 20 | 3.0000 | 3.2500 |" in card and "| 30 |" not in card
    assert "| coco/detail_failing | 0.1250 | 20 |" in card
    assert "for 20 steps" in card and "Licences of the parts" in card
    assert str(tmp_path) not in card and str(tiny_world.root) not in card


def test_no_path_whatever_the_run_was_made_with(tiny_world: TinyWorld, tmp_path: Path) -> None:
    there = "/site/private"
    step = f"{there}/runs/stage1/checkpoints/step-00000030"
    paths = {
        "model__projector": f"{there}/runs/stage1",
        "data__feature_cache": f"{there}/features",
        "data__stage_to": f"{there}/local",
        "data__paths": {"cc_sbu_align": f"{there}/data"},
        "launch__env": {"DATA": there},
        "launch__setup": [f"source {there}/env.sh"],
        "launch__on_event": [f"{there}/notify"],
        "launch__sbatch": {"comment": there},
        "launch__runs_dir": f"{there}/runs",
        "container__runtime": "apptainer",
        "container__image": f"{there}/image.sif",
        "container__mounts": [f"{there}:/data"],
        "container__python": f"{there}/bin/python",
        "container__options": [f"--home={there}"],
    }
    run = make_trained_run(tiny_world, tmp_path / "two", **paths)
    bundle = open_bundle(tiny_world.weights)

    def card() -> str:
        return model_card("mine", bundle, end_symbol="###", run=run, step=12)

    assert '| model.projector | "stage1" |' in card()
    write_json(run.pins_file, {"about": {"projector": step}})
    assert '| model.projector | "stage1, step 30" |' in card()
    assert not re.search(r"(?<![\w.])/\w", card()), card()
    write_json(run.pins_file, {"about": {"projector": f"{there}/kept/step-00000030"}})
    assert '| model.projector | "step-00000030" |' in card()
    assert "?" not in card() and "| job |" not in card() and "| nodes |" not in card()

"""Validation with answers, on two real ranks: shown at each, and training does not notice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.support.runs import ForkedRanks, curve, final_projector, records
from tests.support.tiny_world import TinyWorld

SETTINGS = {
    "train__max_steps": 8,
    "train__eval_every_steps": 4,
    "data__val_fraction": 0.4,
}
ASKED = {
    "train__eval_suites": ["failure"],
    "train__eval_images": 3,
    "train__eval_answer_tokens": 8,
    "checkpoint": {"keep_best": "failure", "keep_last": 1},
}


@pytest.mark.parametrize("world_size", [2])
def test_answers_at_each_validation_leave_the_bits_alone(
    tiny_world: TinyWorld, tmp_path: Path, world_size: int
) -> None:
    runs = []
    ranks = ForkedRanks()
    try:
        for name, more in (("without", {}), ("with", ASKED)):
            file = tiny_world.write_config(tmp_path / f"{name}.yaml", 2, **SETTINGS, **more)
            run = RunDir(tmp_path / name)
            run.create({"name": name, "stage": 2})
            write_config(run.config_file, load_config(file))
            ranks.start(run.path, world_size)
            assert ranks.wait() == [0] * world_size
            runs.append(run.path)
    finally:
        ranks.close()
    without, asked = runs
    assert final_projector(asked) == final_projector(without)
    assert curve(asked) == curve(without)
    assert curve(asked, "val/loss") == curve(without, "val/loss") != []
    assert [step for step, _ in curve(asked, "eval/poem_failing")] == [4, 8]
    events = EventAccumulator(str(asked / "tensorboard"), size_guidance={"images": 0, "tensors": 0})
    events.Reload()
    for task in ("detail", "poem"):
        shown = events.Images(f"eval/{task}")
        assert [image.step for image in shown] == [4, 8]
        assert all(i.encoded_image_string.startswith(b"\x89PNG") and i.width > 672 for i in shown)
        (text, _) = events.Tensors(f"eval/{task}_answers")
        assert text.tensor_proto.string_val[0].count(b"cc_sbu_align/") == 3
    scores = [r["scores"] for r in records(asked) if r["kind"] == "validation"]
    assert len(scores) == 2 and all("detail_failing" in score for score in scores)
    *_, newest = sorted(asked.glob("checkpoints/step-*/manifest.json"))
    step, value = json.loads(newest.read_text())["meta"]["best_scores"]["failure"]
    failing = [-(score["detail_failing"] + score["poem_failing"]) / 2 for score in scores]
    assert (step, value) == max(
        (4, failing[0]), (8, failing[1]), key=lambda best: (best[1], best[0])
    )
    # Its time is no training: it stands in its own bucket.
    buckets = [read_ledgers(run / "ledger")[0].buckets["validation"] for run in runs]
    assert buckets[1] > buckets[0]

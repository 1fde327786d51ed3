"""A run over pipes: it trains, stops and goes on, and says that it cannot do so exactly."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import write_config
from mgpt4_hpc.launch.submit.preflight import preflight
from mgpt4_hpc.run_dir import RunDir
from tests.support.runs import (
    ForkedRanks,
    assert_every_step_once,
    last_step,
    records,
    wait_until,
)
from tests.support.tiny_world import TinyWorld

STEPS = 80


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[ForkedRanks]:
    forked = ForkedRanks(logs=tmp_path)
    yield forked
    forked.close()


def test_a_streamed_run_goes_on_and_says_what_it_cannot(
    ranks: ForkedRanks, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    streams = [
        {"name": name, "path": f"pipe:cat {tiny_world.shards(name)}/{{00000..00001}}.tar"}
        for name in ("laion", "cc_sbu")
    ]
    file = tiny_world.write_config(
        tmp_path / "run.yaml", data__sources=streams, train__max_steps=STEPS,
        train__global_batch_size=8, launch__gpus=2,
    )  # fmt: skip
    resolved = load_config(file)
    run = RunDir(tmp_path / "run")
    notes = preflight(resolved.config, tmp_path, executor="none")
    assert any("cannot resume exactly" in note for note in notes)
    run.create({"name": "run", "stage": 1})
    write_config(run.config_file, resolved)
    pids = ranks.start(run.path, 2)
    wait_until(lambda: last_step(run.path) >= 3, 120, "step 3")
    ranks.terminate(pids)
    assert ranks.wait() == [75, 75]
    assert not [record for record in records(run.path) if record["kind"] == "drift"]
    ranks.start(run.path, 2)
    assert ranks.wait() == [0, 0]
    assert_every_step_once(run.path, STEPS)
    (drift,) = [record for record in records(run.path) if record["kind"] == "drift"]
    assert "streams cannot be resumed" in drift["what"][0]
    assert "WARNING: this run cannot resume exactly" in ranks.log(0)

"""Real processes, killed and resumed in another number, read the identical sequence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mgpt4_hpc.data.index.index import ShardIndex, build_index
from tests.unit.data.worlds import write_shards

GLOBAL_BATCH = 10
NUM_STEPS = 9
CHILD = """
import json, sys
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.batching.loader import LoaderOptions, StepLoader
from mgpt4_hpc.data.sampling.order import SampleOrder, SourceSize
from tests.unit.data.worlds import text_spec

paths, rank, world_size, start, steps, workers = json.loads(sys.argv[1])
indexes = [ShardIndex.open(path) for path in paths]
sources = [SourceSize(i.name, i.num_samples, w) for i, w in zip(indexes, (5, 2))]
loader = StepLoader(
    SampleOrder(sources, 11, val_fraction=0.1), indexes, text_spec(), 8,
    LoaderOptions(
        global_batch_size=10, micro_batch_size=3, rank=rank, world_size=world_size,
        num_workers=workers, start_position=start, seed=11,
    ),
)
for _ in range(steps):
    step = next(loader)
    print(json.dumps([[b.keys, b.input_ids_BT.sum().item()] for b in step]), flush=True)
    sys.stdin.readline()
"""


@pytest.fixture(scope="module")
def indexes(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("two")
    for name, size in (("laion", 90), ("cc", 40)):
        build_index(write_shards(folder / name, size, 20), folder / f"{name}.index")
        assert ShardIndex.open(folder / f"{name}.index").name == name
    return [str(folder / "laion.index"), str(folder / "cc.index")]


def run(
    indexes: list[str], world_size: int, start: int, steps: int, *, kill: bool = False
) -> list[list[str]]:
    """Keys of each global step, in the order of the ranks; optionally ended by SIGKILL."""
    children = [
        subprocess.Popen(
            [sys.executable, "-c", CHILD,
             json.dumps([indexes, rank, world_size, start, 99 if kill else steps, rank])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).parents[3],
        )
        for rank in range(world_size)
    ]  # fmt: skip
    sequence = []
    for _ in range(steps):
        keys = []
        for child in children:
            assert child.stdout is not None
            assert child.stdin is not None
            line = child.stdout.readline()
            assert line, "the child died"
            keys += [key for batch, _ in json.loads(line) for key in batch]
        for child in children:
            child.stdin.write("on\n")  # type: ignore[union-attr]
            child.stdin.flush()  # type: ignore[union-attr]
        sequence.append(keys)
    for child in children:
        if kill:
            child.kill()
        child.communicate(timeout=60)
    return sequence


def test_interrupted_and_resumed_on_other_numbers_of_processes(indexes: list[str]) -> None:
    uninterrupted = run(indexes, 2, 0, NUM_STEPS)
    resumed = run(indexes, 2, 0, 4, kill=True)
    resumed += run(indexes, 1, 4 * GLOBAL_BATCH, 2, kill=True)
    resumed += run(indexes, 2, 6 * GLOBAL_BATCH, NUM_STEPS - 6)
    assert resumed == uninterrupted
    assert all(len(step) == GLOBAL_BATCH for step in resumed)

"""Who copies on a node, and what is told where nobody can."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.schema import RunConfig
from mgpt4_hpc.data.sampling.order import SampleOrder, SourceSize
from mgpt4_hpc.distributed import Ranks
from mgpt4_hpc.train.inputs.node_staging import NodeStaging, open_staging
from tests.unit.data.worlds import make_index


def opened(tmp_path: Path, ranks: Ranks, stage_to: str | None) -> NodeStaging:
    config: RunConfig = load_config("toy-stage1", overrides={"data.stage_to": stage_to}).config
    index = make_index(tmp_path / f"rank{ranks.rank}", 20)
    order = SampleOrder([SourceSize(index.name, 20)], seed=0)
    return open_staging(config, tmp_path / "run", order, [index], ranks, 0)


def test_nothing_unless_it_is_asked_for(tmp_path: Path) -> None:
    staging = opened(tmp_path, Ranks(), None)
    staging.advance(5)
    staging.close()
    assert staging == NodeStaging()
    assert staging.facts is None


def test_the_first_rank_of_a_node_copies_and_the_others_share(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    first = opened(tmp_path, Ranks(2, 0, 4, 2), str(disk))
    other = opened(tmp_path, Ranks(3, 1, 4, 2), str(disk))
    try:
        assert first.stager is not None
        assert first.facts is not None
        assert other.stager is None
        assert other.staged is not None
        assert other.facts is None
        assert "at most 16 GiB" in first.told
    finally:
        other.close()
        assert len(list(disk.iterdir())) == 1  # it is not the other's to remove
        first.close()
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize("stage_to", ["$NO_SUCH_PLACE", "none/at/all"])
def test_without_a_place_the_shards_are_read(tmp_path: Path, stage_to: str) -> None:
    staging = opened(tmp_path, Ranks(), stage_to)
    assert staging.staged is None
    assert f"{stage_to} is no folder here" in staging.told

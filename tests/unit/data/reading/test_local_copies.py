"""Tests of ``data/reading/local_copies.py``."""

from __future__ import annotations

from pathlib import Path

import pytest

from mgpt4_hpc.data.index.index import ScanOptions, ShardIndex, build_index
from mgpt4_hpc.data.reading.local_copier import Stager
from mgpt4_hpc.data.reading.local_copies import Staged, Stretches, stage_folder
from mgpt4_hpc.data.reading.reader import BadSampleError, SampleReader
from tests.unit.data.reading.copier import a_copier, an_order
from tests.unit.data.worlds import make_index, write_shards

pytestmark = pytest.mark.usefixtures("small_stretches")


def test_stretches_cover_every_sample(index: ShardIndex) -> None:
    stretches = Stretches([index])
    for sample_id in range(index.num_samples):
        found, ref = stretches.of(0, sample_id), index.locate(sample_id)
        assert index.shard_path(found.shard) == ref.shard
        for span in ref.parts.values():
            assert found.begin <= span.offset
            assert span.offset + span.length <= found.end
    # 8 samples each, cut where a shard of 30 ends
    assert len({stretches.of(0, sample_id).name for sample_id in range(100)}) == 16


@pytest.mark.parametrize("verified", [True, False])
def test_a_damaged_copy_is_not_used(tmp_path: Path, folder: Path, verified: bool) -> None:
    out = tmp_path / "v.index"
    build_index(write_shards(tmp_path / "v", 16, 16), out, ScanOptions(verify=verified))
    index = ShardIndex.open(out)
    copier, _ = a_copier(folder, index, 10**9)
    while copier.step(0):
        pass
    for copy in folder.iterdir():
        data = copy.read_bytes()
        copy.write_bytes(bytes(len(data)) if verified else data[:-600])
    reader, plain = SampleReader([index], staged=Staged(folder, [index])), SampleReader([index])
    assert [reader.read(0, i) for i in range(16)] == [plain.read(0, i) for i in range(16)]


def test_a_copy_of_a_changed_shard_is_not_used(tmp_path: Path, folder: Path) -> None:
    index = make_index(tmp_path, 16, 16)
    shard = index.shard_path(0)
    shard.write_bytes(shard.read_bytes().replace(b"000000003.", b"000000777."))
    copier, counts = a_copier(folder, index, 10**9)
    while copier.step(0):
        pass
    assert counts[0] == 2
    reader = SampleReader([index], staged=Staged(folder, [index]), pauses_s=())
    assert reader.read(0, 2).key == "000000002"
    with pytest.raises(BadSampleError, match="another member lies there"):
        reader.read(0, 3)


def test_where_the_copies_lie(
    index: ShardIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NODE_DISK", str(tmp_path))
    monkeypatch.delenv("NO_SUCH", raising=False)
    found = stage_folder("$NODE_DISK", [index], "/runs/a")
    assert found is not None
    assert found.parent == tmp_path
    assert found != stage_folder("$NODE_DISK", [index], "/runs/b")
    assert stage_folder("$NO_SUCH", [index], "/runs/a") is None
    assert stage_folder(str(tmp_path / "none"), [index], "/runs/a") is None
    found.symlink_to(tmp_path)
    with pytest.raises(PermissionError):
        Stager(found, an_order(index), [index], 1, 0)
    assert found.is_symlink()  # and what it points to was left alone
    assert index.path.exists()

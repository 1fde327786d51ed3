"""The index: right, atomic, incremental, the same from any number of processes."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from mgpt4_hpc.data.index.index import ScanOptions, ShardIndex, build_index
from mgpt4_hpc.errors import DataError
from tests.unit.data.worlds import jpeg, make_index, members, tar_bytes, write_shards


@pytest.fixture
def shards(tmp_path: Path) -> list[Path]:
    return write_shards(tmp_path / "data", 50, 20)


def test_every_sample_is_found_where_it_lies(tmp_path: Path, shards: list[Path]) -> None:
    built, num_reused = build_index(shards, tmp_path / "toy.index", ScanOptions(verify=True))
    assert (built.num_samples, built.num_shards, num_reused) == (50, 3, 0)
    assert built.quarantined == []
    index = ShardIndex.open(tmp_path / "toy.index")
    assert (index.name, index.num_samples, index.num_shards) == ("toy", 50, 3)
    expected = dict(members(range(50)))
    for sample in range(50):
        ref = index.locate(sample)
        assert ref.key == index.key(sample) == f"{sample:09d}"
        assert ref.shard == shards[sample // 20]
        for part, span in ref.parts.items():
            content = ref.shard.read_bytes()[span.offset : span.offset + span.length]
            assert content == expected[f"{ref.key}.{part}"]
            assert span.crc == zlib.crc32(content)
    for beyond in (-1, 50):
        with pytest.raises(IndexError, match="it has 50"):
            index.locate(beyond)


def test_is_an_ordinary_safetensors_file(tmp_path: Path, shards: list[Path]) -> None:
    build_index(shards, tmp_path / "toy.index")
    arrays = load_file(tmp_path / "toy.index")
    assert arrays["blocks"].shape == (50, 3)
    assert arrays["shard_first"].tolist() == [0, 20, 40, 50]


@pytest.mark.slow
def test_workers_give_the_same_index(tmp_path: Path, shards: list[Path]) -> None:
    progress: list[tuple[int, int]] = []
    build_index(shards, tmp_path / "one.index", ScanOptions(verify=True, decode=True), name="toy")
    build_index(
        shards,
        tmp_path / "two.index",
        ScanOptions(verify=True, decode=True, workers=2),
        name="toy",
        on_shard=lambda done, total: progress.append((done, total)),
    )
    assert (tmp_path / "one.index").read_bytes() == (tmp_path / "two.index").read_bytes()
    assert progress == [(1, 3), (2, 3), (3, 3)]


def test_only_changed_and_new_shards_are_read_again(
    tmp_path: Path, shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from mgpt4_hpc.data.index import index as module

    out = tmp_path / "toy.index"
    build_index(shards[:2], out)
    read: list[str] = []
    scan = module.scan_shard
    monkeypatch.setattr(
        module, "scan_shard", lambda path, name, **kw: read.append(name) or scan(path, name, **kw)
    )
    shards[1].write_bytes(tar_bytes([*members(range(20, 45)), ("a.cls", b"1")]))
    built, num_reused = build_index(shards, out)
    assert read == ["00001.tar", "00002.tar"]
    assert (num_reused, built.num_samples, built.num_ignored) == (1, 55, 1)
    _, num_reused = build_index(shards, tmp_path / "other.index", name="toy")
    assert out.read_bytes() == (tmp_path / "other.index").read_bytes()
    assert num_reused == 0
    read.clear()
    build_index(shards, out, ScanOptions(verify=True))
    assert len(read) == 3, "an index without CRCs does not serve one with"


def test_parts_made_elsewhere_are_put_together_unread(
    tmp_path: Path, shards: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [tmp_path / f"part{number}.index" for number in range(2)]
    for number, part in enumerate(parts):
        build_index(shards[number::2], part)
    monkeypatch.setattr("mgpt4_hpc.data.index.index.scan_shard", None)
    _, num_reused = build_index(shards, tmp_path / "toy.index", reuse=parts)
    assert num_reused == 3
    index = ShardIndex.open(tmp_path / "toy.index")
    assert [index.key(sample) for sample in (0, 20, 49)] == ["000000000", "000000020", "000000049"]


@pytest.mark.slow
def test_the_digest_tells_what_defines_the_order(tmp_path: Path, shards: list[Path]) -> None:
    def digest(paths: list[Path], **options: object) -> str:
        out = tmp_path / "d.index"
        out.unlink(missing_ok=True)
        build_index(paths, out, ScanOptions(**options))  # type: ignore[arg-type]
        return ShardIndex.open(out).digest

    first = digest(shards)
    assert digest(shards, verify=True, workers=2) == first
    assert digest(shards[::-1]) != first
    assert digest(shards[:2]) != first
    os.utime(shards[0])
    assert digest(shards) == first, "a copy has another time and the same samples"
    swapped = members(range(20))
    shards[0].write_bytes(tar_bytes(swapped[3:6] + swapped[:3] + swapped[6:]))
    assert digest(shards) != first


def test_a_moved_folder_still_works(tmp_path: Path) -> None:
    old = tmp_path / "old"
    index = make_index(old, 10, 5)
    shutil.move(old, tmp_path / "new")
    moved = ShardIndex.open(tmp_path / "new" / "toy.index")
    assert moved.check_shards() == []
    assert moved.digest == index.digest
    shutil.move(tmp_path / "new" / "toy", tmp_path / "elsewhere")
    assert len(moved.check_shards()) == 2
    assert ShardIndex.open(moved.path, root=tmp_path / "elsewhere").check_shards() == []


def test_missing_and_resized_shards_are_told(tmp_path: Path, shards: list[Path]) -> None:
    build_index(shards, tmp_path / "toy.index")
    index = ShardIndex.open(tmp_path / "toy.index")
    shards[0].unlink()
    shards[2].write_bytes(shards[2].read_bytes() + bytes(512))
    faults = index.check_shards()
    assert len(faults) == 2
    assert "No such file" in faults[0]
    assert "when it was indexed" in faults[1]


def test_an_unreadable_shard_is_tried_again_later(tmp_path: Path, shards: list[Path]) -> None:
    hidden = shards[1].rename(tmp_path / "hidden")
    built, _ = build_index(shards, tmp_path / "toy.index")
    assert built.num_samples == 30
    assert built.quarantined == [
        ("00001.tar", "@0", "the shard cannot be read: No such file or directory")
    ]
    hidden.rename(shards[1])
    assert build_index(shards, tmp_path / "toy.index")[0].num_samples == 50


def test_an_index_travels_to_other_processes(tmp_path: Path) -> None:
    index = make_index(tmp_path, 6)
    copy = pickle.loads(pickle.dumps(index))
    assert copy.locate(5) == index.locate(5)


@pytest.mark.slow
def test_killed_builds_leave_no_index(tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "data", 200, 10)
    out = tmp_path / "out" / "toy.index"
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from mgpt4_hpc.data.index.index import build_index\n"
        "def die(done, total):\n"
        "    if done == int(sys.argv[3]): os.kill(os.getpid(), 9)\n"
        "build_index(sorted(Path(sys.argv[1]).glob('*.tar')), Path(sys.argv[2]), on_shard=die)\n"
    )
    for kill_at in (1, 20):
        arguments = [str(tmp_path / "data"), str(out), str(kill_at)]
        result = subprocess.run([sys.executable, "-c", code, *arguments], check=False)
        assert result.returncode == -signal.SIGKILL
        assert list(out.parent.iterdir()) == []
    build_index(shards, out)
    before = out.read_bytes()
    os.utime(shards[3])
    arguments = [str(tmp_path / "data"), str(out), "20"]
    subprocess.run([sys.executable, "-c", code, *arguments], check=False)
    assert out.read_bytes() == before
    assert list(out.parent.iterdir()) == [out]


def test_what_is_left_out_goes_from_index_to_index(tmp_path: Path) -> None:
    shard, out = tmp_path / "a.tar", tmp_path / "a.index"
    shard.write_bytes(
        tar_bytes([("a.jpg", jpeg()), ("a.txt", b"x"), ("b.jpg", jpeg()), ("v1.2.jpg", b"x")])
    )
    first, _ = build_index([shard], out)
    again, num_reused = build_index([shard], out)
    assert num_reused == 1
    assert again.left_out == first.left_out
    assert [(entry.count, entry.example) for entry in first.left_out] == [(1, "b"), (1, "v1.2.jpg")]
    older = ShardIndex.open(out)
    del older._listing["left_out"]  # as before it was noted
    assert [entry.count for entry in older.left_out] == [1, 1]


def test_nothing_usable_is_an_error_that_names_what_is_there(tmp_path: Path) -> None:
    shard, out = tmp_path / "a.tar", tmp_path / "a.index"
    shard.write_bytes(tar_bytes([("v1.2.jpg", jpeg()), ("v1.2.txt", b"x"), ("c.heic", b"x")]))
    with pytest.raises(DataError) as error:
        build_index([shard], out, may_be_empty=False)
    for told in ("no usable sample", "v1.2.jpg", "c.heic", "KEY.jpg", "KEY.txt"):
        assert told in str(error.value)
    assert not out.exists()
    assert build_index([shard], out)[0].num_samples == 0  # a part of an array may have none


def test_useless_requests_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shard"):
        build_index([], tmp_path / "x.index")
    with pytest.raises(DataError, match="mgpt4 data index"):
        ShardIndex.open(tmp_path / "none.index")
    (tmp_path / "bad.index").write_text("not an index at all")
    with pytest.raises(DataError, match="not a usable"):
        ShardIndex.open(tmp_path / "bad.index")

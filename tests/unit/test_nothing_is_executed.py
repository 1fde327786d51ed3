"""Settings, checkpoints, weights, indexes and shards are data: a program planted there stays one.

That a run's pickled job is looked at before it is unpickled is shown in test_trust.py.
"""

from __future__ import annotations

import io
import os
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from mgpt4_hpc.checkpoint.manifest import FileRecord, Manifest, new_hash
from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.config.assignments import parse_assignments
from mgpt4_hpc.config.load import load_config
from mgpt4_hpc.config.run_config_file import read_config, write_config
from mgpt4_hpc.data.index.index import ScanOptions, ShardIndex, build_index
from mgpt4_hpc.data.reading.reader import SampleReader
from mgpt4_hpc.errors import ConfigError, DataError, WeightsError
from mgpt4_hpc.model.weight_files.untrusted_files import read_tensors
from tests.unit.data.worlds import jpeg, make_index


class Bomb:
    """A pickle of it touches a file when it is read."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (f"touch {self.trace}",)


@pytest.fixture
def trace(tmp_path: Path) -> Iterator[Path]:
    """Where a program that ran would leave its trace; none may."""
    path = tmp_path / "ran"
    yield path
    assert not path.exists()


@pytest.fixture
def bomb(trace: Path) -> bytes:
    return pickle.dumps(Bomb(trace))


def test_the_bomb_works(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "it")))
    assert (tmp_path / "it").exists()


# -- settings ----------------------------------------------------------------------------------

YAML = [
    "!!python/object/apply:os.system ['touch {trace}']",
    "!!python/object/new:os.system ['touch {trace}']",
    "!!python/name:os.system",
    "!!python/module:antigravity",
]


@pytest.mark.parametrize("text", YAML)
def test_yaml_makes_no_objects(text: str, trace: Path, tmp_path: Path) -> None:
    text = text.format(trace=trace)
    file = tmp_path / "x.yaml"
    file.write_text(f"stage: 1\nname: {text}\n")
    with pytest.raises(ConfigError):
        load_config(str(file))
    with pytest.raises(ConfigError):
        load_config("stage1-vicuna7b", overrides=parse_assignments([f"name={text}"]))
    write_config(file, load_config("stage1-vicuna7b"))
    file.write_text(file.read_text().replace("seed: 42", f"seed: {text}"))
    with pytest.raises(ConfigError):
        read_config(file)


# -- checkpoints and weights -------------------------------------------------------------------


def test_a_checkpoint_is_never_unpickled_even_if_its_hashes_are_right(
    tmp_path: Path, bomb: bytes, trace: Path
) -> None:
    store = CheckpointStore(tmp_path / "checkpoints")
    path = store.commit(8, {"projector": {"w": torch.zeros(2)}}, {"samples_seen": 8})
    forged = new_hash()
    forged.update(bomb)
    manifest = Manifest.from_bytes((path / "manifest.json").read_bytes())
    manifest.files["projector"] = FileRecord(len(bomb), forged.hexdigest())
    (path / "projector.safetensors").write_bytes(bomb)
    (path / "manifest.json").write_bytes(manifest.to_bytes())
    for name in ("optimizer.pt", "extra.pkl"):
        (path / name).write_bytes(bomb)
    assert store.load_newest() is None


@pytest.mark.parametrize("name", ["x.pth", "x.pt", "x.bin", "x.safetensors", "x.ckpt"])
def test_weights_are_never_unpickled(tmp_path: Path, bomb: bytes, trace: Path, name: str) -> None:
    (tmp_path / name).write_bytes(bomb)
    with pytest.raises(WeightsError):
        read_tensors(tmp_path / name)
    torch.save({"model": {"w": torch.zeros(1)}, "config": Bomb(trace)}, tmp_path / name)
    with pytest.raises(WeightsError):
        read_tensors(tmp_path / name)


# -- data --------------------------------------------------------------------------------------


def test_an_index_is_never_unpickled(tmp_path: Path, bomb: bytes, trace: Path) -> None:
    index = make_index(tmp_path, 4, 4)
    path = next(tmp_path.rglob("*.index"))
    index.num_samples  # noqa: B018 - it was a good one
    path.write_bytes(bomb)
    with pytest.raises(DataError):
        ShardIndex.open(path)


HOSTILE = ["../../outside", "/tmp/outside", "a/../../outside", "-rf", "$(touch x)", "a b'\"`id`"]


def test_a_shard_writes_nothing_and_runs_nothing(tmp_path: Path, bomb: bytes, trace: Path) -> None:
    """Members that webdataset's decoders would unpickle, names that lead elsewhere, links."""
    data = tmp_path / "data"
    data.mkdir()
    with tarfile.open(data / "00000.tar", "w") as tar:
        for number, name in enumerate([*HOSTILE, "good"]):
            parts = {"jpg": jpeg(number), "txt": b"a caption"}
            parts |= dict.fromkeys(("pyd", "pickle", "pkl", "pth", "pt", "npy"), bomb)
            for part, content in parts.items():
                info = tarfile.TarInfo(f"{name}.{part}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE):
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = kind, "/etc/passwd"
            tar.addfile(link)
    before = sorted(path for path in tmp_path.rglob("*"))
    build_index([data / "00000.tar"], tmp_path / "x.index", ScanOptions(decode=True))
    index = ShardIndex.open(tmp_path / "x.index")
    reader = SampleReader([index])
    captions = {reader.read(0, number).caption for number in range(index.num_samples)}
    assert captions == {"a caption"} and index.num_samples >= 1
    assert sorted(path for path in tmp_path.rglob("*")) == sorted([*before, tmp_path / "x.index"])
    assert not Path("/tmp/outside.jpg").exists()

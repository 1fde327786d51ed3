"""Tests of ``checkpoint/filesystem.py``."""

import errno

import pytest

from mgpt4_hpc.checkpoint.filesystem import FileSystem
from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.errors import CheckpointError
from tests.unit.checkpoint.states import (
    commit,
    names,
)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", attempt=3)


class FullDisk(FileSystem):
    """Lets so many bytes through, and then none until something is removed."""

    def __init__(self, free):
        self.free = free

    def write(self, fd, data):
        if data.nbytes > self.free:
            super().write(fd, data[: self.free])
            raise OSError(errno.ENOSPC, "No space left on device")
        self.free -= data.nbytes
        super().write(fd, data)


@pytest.mark.parametrize("free", [0, 5, 100, 300, 600, 800])
def test_a_full_disk_is_explained_and_cleaned_up(tmp_path, free):
    commit(CheckpointStore(tmp_path), 1)
    store = CheckpointStore(tmp_path, filesystem=FullDisk(free))
    with pytest.raises(CheckpointError, match="No space left") as caught:
        commit(store, 2)
    assert isinstance(caught.value.__cause__, OSError)
    assert names(store) == ["step-00000001"]
    assert store.load_newest().step == 1

"""Tests of ``checkpoint/reading.py``."""

import pytest

from mgpt4_hpc.checkpoint import reading
from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.errors import StorageTrouble
from tests.unit.checkpoint.states import EIO, commit, damage_bit, fail_reading, patient_store


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", attempt=3)


def test_an_outage_while_checkpoints_are_read_loses_none(store, monkeypatch):
    """A file server that is away for some seconds, just when a requeued run looks for them."""
    commit(store, 1, 2, 3)
    read, slept = reading._read_file, []

    def failing(*arguments, **options):
        if sum(slept) < 2:
            raise EIO
        return read(*arguments, **options)

    monkeypatch.setattr(reading, "_read_file", failing)
    assert patient_store(store.folder, slept).load_newest().step == 3
    assert store.steps() == [1, 2, 3]


def test_a_lasting_outage_does_not_begin_the_run_anew(store, monkeypatch):
    commit(store, 1, 2, 3)
    damage_bit(store.path_of(1))
    slept = []
    with monkeypatch.context() as patch:
        for step in (2, 3):
            fail_reading(patch, store.path_of(step).name, EIO)
        with pytest.raises(StorageTrouble, match=r"no checkpoint .* can be read") as caught:
            patient_store(store.folder, slept).load_newest()
    assert not caught.value.will_repeat
    assert sum(slept) == 30, "once for all of them: a watchdog waits"
    assert store.load_newest().step == 3

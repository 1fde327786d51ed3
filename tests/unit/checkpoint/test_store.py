import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from mgpt4_hpc.checkpoint.manifest import DamagedCheckpointError
from mgpt4_hpc.checkpoint.store import CheckpointStore
from mgpt4_hpc.errors import CheckpointError, RunLocked
from tests.unit.checkpoint.states import (
    EIO,
    commit,
    damage_bit,
    fail_reading,
    names,
    patient_store,
    state,
)


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path / "checkpoints", attempt=3)


def test_what_is_committed_comes_back(store):
    path = store.commit(1000, state(1000), {"samples_seen": 8000, "loss": 0.1 + 0.2})
    assert path == store.folder / "step-00001000"
    assert sorted(child.name for child in path.iterdir()) == [
        "manifest.json",
        "optimizer.safetensors",
        "projector.safetensors",
    ]
    loaded = store.load_newest()
    assert (loaded.step, loaded.path) == (1000, path)
    assert loaded.meta == {"samples_seen": 8000, "loss": 0.1 + 0.2}
    for entry, tensors in state(1000).items():
        assert loaded.files[entry].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(loaded.files[entry][name], tensor)


def test_an_empty_or_missing_folder_has_no_checkpoint(store):
    assert store.load_newest() is None
    assert store.prune() == [] and store.clean_stale() == []
    store.folder.mkdir()
    assert store.load_newest() is None


def test_other_programs_can_read_the_files(store):
    path = store.commit(1, state(1), {})
    loaded = safetensors.torch.load_file(path / "projector.safetensors")
    assert torch.equal(loaded["weight"], state(1)["projector"]["weight"])


def test_bytes_are_the_same_in_every_run(tmp_path):
    hashes = set()
    for name in "ab":
        path = CheckpointStore(tmp_path / name).commit(5, state(5), {"attempt": name})
        hashes.add(hashlib.sha256((path / "projector.safetensors").read_bytes()).hexdigest())
    assert len(hashes) == 1


def test_the_manifest_records_sizes_and_hashes(store):
    path = store.commit(1, state(1), {})
    record = json.loads((path / "manifest.json").read_text())["files"]["projector"]
    data = (path / "projector.safetensors").read_bytes()
    assert record == {
        "size": len(data),
        "blake2b": hashlib.blake2b(data, digest_size=32).hexdigest(),
    }


def damage_truncated(path):
    os.truncate(path / "projector.safetensors", 50)


def damage_longer(path):
    with (path / "projector.safetensors").open("ab") as stream:
        stream.write(b"\0")


def damage_file_missing(path):
    (path / "optimizer.safetensors").unlink()


def damage_manifest_missing(path):
    (path / "manifest.json").unlink()


def damage_manifest_empty(path):
    (path / "manifest.json").write_bytes(b"")


def damage_manifest_meta(path):
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"samples_seen": 24', '"samples_seen": 25'))


def damage_folder_empty(path):
    shutil.rmtree(path)
    path.mkdir()


def damage_is_a_file(path):
    shutil.rmtree(path)
    path.write_bytes(b"")


def damage_of_another_step(path):
    shutil.rmtree(path)
    shutil.copytree(path.with_name("step-00000001"), path)


DAMAGES = [value for name, value in sorted(globals().items()) if name.startswith("damage_")]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_taken(store, damage):
    commit(store, 1, 2, 3)
    damage(store.path_of(3))
    with pytest.raises(DamagedCheckpointError):
        store.verify(store.path_of(3))
    told = []
    loaded = store.load_newest(lambda path, reason: told.append((path, reason)))
    assert loaded.step == 2
    assert [path for path, _ in told] == [store.path_of(3)] and told[0][1]
    assert names(store) == ["bad-step-00000003-0003", "step-00000001", "step-00000002"]
    commit(store, 3)
    assert store.load_newest().step == 3


def test_two_damaged_ones_are_passed_and_names_never_clash(store):
    for _ in range(2):
        commit(store, 1, 2, 3)
        damage_bit(store.path_of(2))
        damage_bit(store.path_of(3))
        assert store.load_newest().step == 1
    assert "bad-step-00000003-0003.2" in names(store)
    damage_bit(store.path_of(1))
    assert store.load_newest() is None


@pytest.mark.parametrize("number", [errno.EACCES, errno.ESTALE, errno.ENOTCONN])
def test_what_cannot_be_judged_is_not_passed_over(store, monkeypatch, number):
    commit(store, 1, 2)
    fail_reading(monkeypatch, "step-00000002", OSError(number, os.strerror(number)))
    with pytest.raises(CheckpointError, match="cannot read"):
        store.load_newest()
    assert store.steps() == [1, 2]


def test_a_bad_sector_is_passed_over_after_half_a_minute_and_stays(store, monkeypatch):
    commit(store, 1, 2)
    slept, told = [], []
    with monkeypatch.context() as patch:
        fail_reading(patch, "step-00000002", EIO)
        loaded = patient_store(store.folder, slept).load_newest(lambda *bad: told.append(bad))
        assert loaded.step == 1 and sum(slept) == 30
        assert [path for path, _ in told] == [store.path_of(2)]
        assert "Input/output error" in told[0][1]
        commit(store, 2)  # the older one trained on: what cannot be read makes room
    assert names(store) == ["bad-step-00000002-0003", "step-00000001", "step-00000002"]
    assert store.load_newest().step == 2


def test_the_run_does_not_go_back_to_what_it_went_on_without(store, monkeypatch):
    """On other ranks its later steps have other bits than the checkpoint that was unreadable."""
    commit(store, 1, 4)
    again = patient_store(store.folder, [])
    with monkeypatch.context() as patch:
        fail_reading(patch, "step-00000004", EIO)
        assert again.load_newest().step == 1
    again.commit(2, state(2), {})
    assert names(store) == ["bad-step-00000004-0003", "step-00000001", "step-00000002"]


def test_the_same_checkpoint_again_is_a_success(store):
    commit(store, 4)
    before = store.path_of(4).stat().st_ino
    assert store.commit(4, state(4), {"attempt": 2}) == store.path_of(4)
    assert store.path_of(4).stat().st_ino == before
    assert names(store) == ["step-00000004"]


def test_a_damaged_one_of_the_same_step_makes_room(store):
    commit(store, 4)
    damage_bit(store.path_of(4))
    commit(store, 4)
    store.verify(store.path_of(4))
    assert names(store) == ["bad-step-00000004-0003", "step-00000004"]


def test_a_different_verified_one_of_the_same_step_is_never_overwritten(store):
    commit(store, 4)
    with pytest.raises(CheckpointError, match="different checkpoint of step 4"):
        store.commit(4, state(5), {})
    assert torch.equal(
        store.load_newest().files["projector"]["weight"], state(4)["projector"]["weight"]
    )
    assert names(store) == ["step-00000004"]


def test_a_fenced_attempt_leaves_nothing(store):
    commit(store, 1)

    def guard():
        if any(name.startswith(".tmp-2-") for name in names(store)):
            raise RunLocked("attempt 4 owns the run")

    with pytest.raises(RunLocked):
        store.commit(2, state(2), {}, guard)
    assert names(store) == ["step-00000001"]


def test_an_attempt_that_came_back_from_the_dead_cannot_commit(store):
    """Cut off from the network in the middle of a save, while its successor took over."""
    successor = CheckpointStore(store.folder, attempt=4)
    commit(store, 1)
    with pytest.raises(CheckpointError, match="could not write"):
        store.commit(2, state(2), {}, guard=successor.clean_stale)
    commit(successor, 2)
    assert names(store) == ["step-00000001", "step-00000002"]


def test_pruning_keeps_the_last_and_every_so_many_steps(tmp_path):
    store = CheckpointStore(tmp_path, keep_last=2, keep_every_steps=100)
    commit(store, 50, 100, 150, 170, 200, 250, 260)
    assert store.prune() == [50, 150, 170]
    assert store.steps() == [100, 200, 250, 260]
    assert not list(tmp_path.glob(".tmp-*"))


def test_pruning_counts_only_what_reads_back(tmp_path):
    commit(CheckpointStore(tmp_path), 1, 2, 3, 4)
    store = CheckpointStore(tmp_path, keep_last=2)
    damage_bit(store.path_of(4))
    damage_bit(store.path_of(2))
    assert store.prune() == []
    assert store.steps() == [1, 2, 3, 4]
    commit(store, 5)
    assert store.prune() == [1, 2]


def test_left_overs_of_dead_attempts_go(store):
    commit(store, 1)
    (store.folder / ".tmp-2-dead").mkdir()
    (store.folder / ".tmp-2-dead" / "projector.safetensors").write_bytes(b"half")
    (store.folder / ".tmp-file").write_bytes(b"")
    assert len(store.clean_stale()) == 2
    assert names(store) == ["step-00000001"]


def test_nonsense_retention_is_refused(tmp_path):
    with pytest.raises(ValueError, match="keep_last is 0"):
        CheckpointStore(tmp_path, keep_last=0)
    with pytest.raises(ValueError, match="keep_every_steps is 0"):
        CheckpointStore(tmp_path, keep_every_steps=0)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_really_full_disk(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        store = CheckpointStore(tmp_path, keep_last=1)
        small = {"projector": {"weight": torch.ones(10_000)}}
        store.commit(1, small, {})
        with pytest.raises(CheckpointError, match="No space left"):
            store.commit(2, {"projector": {"weight": torch.ones(60_000)}}, {})
        assert names(store) == ["step-00000001"]
        store.commit(3, small, {})
        assert store.prune() == [1]
        assert store.load_newest().step == 3
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")
def test_a_read_only_folder_for_a_while(tmp_path):
    mount = ["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        store = CheckpointStore(tmp_path)
        commit(store, 0, 1, 2)
        damage_bit(store.path_of(2))
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path)], check=True)
        with pytest.raises(CheckpointError, match="Read-only"):
            commit(store, 3)
        with pytest.raises(CheckpointError, match="Read-only"):
            CheckpointStore(tmp_path, keep_last=1).prune()
        told = []
        assert store.load_newest(lambda path, reason: told.append(reason)).step == 1
        assert "could not be moved aside" in told[0]
        subprocess.run(["mount", "-o", "remount,rw", str(tmp_path)], check=True)
        commit(store, 3)
        assert store.load_newest().step == 3
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.slow
def test_no_pickle_module_is_used_for_loading(tmp_path):
    code = f"""
import pickle, sys
from pathlib import Path
from mgpt4_hpc.checkpoint.store import CheckpointStore
def refuse(*args, **kwargs): raise AssertionError("pickle was used")
pickle.load = pickle.loads = pickle.Unpickler = refuse
assert CheckpointStore(Path({str(tmp_path)!r})).load_newest().step == 1
"""
    commit(CheckpointStore(tmp_path), 1)
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])

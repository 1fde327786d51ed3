"""Every disk that a power cut can leave behind resumes from what was promised.

The promises, checked on each state:

1. what `load_newest` returns is exactly what was committed for that step;
2. it is no older than the newest step that was reported durable;
3. whatever is called `step-N` is complete: a power cut alone never makes a damaged checkpoint;
4. the next attempt can commit and load again.

The harness is tested too: take away any single fsync of the protocol, the rename, the hash check
or the read-back before pruning, and it must find a state that breaks a promise.
"""

import itertools
import logging
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mgpt4_hpc.checkpoint import reading
from mgpt4_hpc.checkpoint import store as store_module
from mgpt4_hpc.checkpoint.manifest import DamagedCheckpointError
from mgpt4_hpc.checkpoint.store import CheckpointStore
from tests.unit.checkpoint.crash_model import (
    RENAME,
    Killed,
    Log,
    RecordingFileSystem,
    crash_states,
)


class PromiseBrokenError(AssertionError):
    pass


def content(step):
    return {
        "projector": {"weight": torch.full((3,), float(step)), "bias": torch.ones(2)},
        "optimizer": {"exp_avg.weight": torch.full((3,), -float(step))},
    }


def meta(step):
    return {"samples_seen": step * 8}


class Scenario:
    """A run on a recorded disk; each `attempt` is a process of its own."""

    def __init__(self, root, entries=("projector", "optimizer")):
        self.root = root
        self.entries = entries
        self.disk = RecordingFileSystem(root)
        self.attempt(1)

    def attempt(self, number):
        self.store = CheckpointStore(
            self.root / "checkpoints", keep_last=2, attempt=number, filesystem=self.disk
        )

    def save(self, step):
        files = {entry: content(step)[entry] for entry in self.entries}
        self.store.commit(step, files, meta(step))
        self.disk.remark("durable", step)

    def rot(self, step, name="optimizer.safetensors"):
        """The disk flips a bit of a checkpoint, long after it was written."""
        path = self.store.path_of(step) / name
        data = bytearray(path.read_bytes())
        data[-1] ^= 0x40
        path.write_bytes(data)
        self.disk.remark("rot", step, path, len(data) - 1)

    def resume(self):
        self.store.clean_stale()
        checkpoint = self.store.load_newest()
        return checkpoint.step if checkpoint else 0


def saves_prune_and_fallback(run):
    for step in (1, 2, 3):
        run.save(step)
    run.store.prune()
    run.rot(3)
    run.attempt(2)
    assert run.resume() == 2
    run.save(3)
    run.save(4)
    run.store.prune()


def rot_before_pruning(run):
    for step in (1, 2, 3, 4):
        run.save(step)
    run.rot(3)
    run.rot(4)
    run.store.prune()


def one_save(run):
    run.save(1)
    run.disk.kill_after = run.kill_after
    run.save(2)


def save_and_prune(run):
    for step in (1, 2, 3):
        run.save(step)
    run.disk.kill_after = run.kill_after
    run.store.prune()


def first_save(run):
    run.disk.kill_after = run.kill_after
    run.save(1)


@contextmanager
def numbered_names():
    """The same temporary names in every recording, so that equal states are recognised."""
    numbers = itertools.count()
    uuid = SimpleNamespace(uuid4=lambda: SimpleNamespace(hex=f"{next(numbers):012d}"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "uuid", uuid)
        yield


def record(script, folder):
    run = Scenario(folder)
    with numbered_names():
        script(run)
    return [Log(run.disk.log)]


def record_kills(script, folder, entries=("optimizer",)):
    """One log per moment of a kill -9, each going on with a second attempt."""
    logs = []
    for kill_after in itertools.count():
        root = folder / str(kill_after)
        root.mkdir()
        run = Scenario(root, entries)
        run.kill_after = kill_after
        with numbered_names():
            try:
                script(run)
            except Killed:
                pass
            else:
                return logs
            run.disk.kill_after = None
            settled = len(run.disk.log)
            run.attempt(2)
            step = run.resume()
            run.save(max(step, 1))  # once more the step that it found, then the next
            run.save(step + 1)
            run.store.prune()
        logs.append(Log(run.disk.log, settled))
    raise AssertionError


SCENARIOS = [
    (record, saves_prune_and_fallback),
    (record, rot_before_pruning),
    (record_kills, one_save),
    (record_kills, save_and_prune),
    (record_kills, first_save),
]


@pytest.fixture(autouse=True, scope="module")
def quiet():
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def scratch():
    shm = Path("/dev/shm")
    folder = tempfile.mkdtemp(dir=shm if os.access(shm, os.W_OK) else None)
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def scenarios(scratch):
    recorded = {}
    for how, script in SCENARIOS:
        folder = scratch / script.__name__
        folder.mkdir()
        recorded[script.__name__] = how(script, folder)
    return recorded


def check(state, root):
    """Raise PromiseBrokenError where the state breaks one."""
    state.write_to(root)
    store = CheckpointStore(root / "checkpoints", keep_last=2, attempt=9)
    for step in store.steps():
        if step not in state.rotten:
            try:
                store.verify(store.path_of(step))
            except Exception as error:
                raise PromiseBrokenError(f"step {step} is incomplete") from error
    store.clean_stale()
    told = []
    loaded = store.load_newest(lambda path, reason: told.append(path))
    step = loaded.step if loaded else -1
    if step < state.durable:
        raise PromiseBrokenError(f"step {state.durable} was durable, found {step}")
    if any(int(path.name.removeprefix("step-")) not in state.rotten for path in told):
        raise PromiseBrokenError(f"{told} were found damaged")
    if loaded:
        if loaded.meta != meta(step):
            raise PromiseBrokenError(f"step {step} has another step's meta")
        for entry, tensors in loaded.files.items():
            for name, tensor in content(step)[entry].items():
                if not torch.equal(tensors[name], tensor):
                    raise PromiseBrokenError(f"{entry}/{name} of step {step} is not what it was")
    following = max(step, 0) + 1
    store.commit(following, content(following), meta(following))
    store.prune()
    if store.load_newest().step != following or list(store.folder.glob(".tmp-*")):
        raise PromiseBrokenError("the next attempt cannot go on")


def check_all(logs, scratch):
    """The number of distinct states checked."""
    root = scratch / "state"
    seen = set()
    for log in logs:
        for state in crash_states(log, seen):
            try:
                check(state, root)
            finally:
                shutil.rmtree(root)
    return len(seen)


@pytest.mark.slow
@pytest.mark.parametrize("name", [script.__name__ for _, script in SCENARIOS])
def test_every_state_resumes(name, scenarios, scratch):
    count = check_all(scenarios[name], scratch)
    print(f"{name}: {count} states")
    assert count > 100


@pytest.mark.soak
@pytest.mark.parametrize("script", [one_save, save_and_prune, first_save])
def test_every_state_resumes_with_two_files(script, scratch):
    folder = scratch / f"soak-{script.__name__}"
    folder.mkdir()
    print(check_all(record_kills(script, folder, ("projector", "optimizer")), scratch), "states")


# Every place in the source that syncs, and the scenario that shows what it is for.
FSYNCS = {
    "_write_file projector.safetensors": "saves_prune_and_fallback",
    "_write_file optimizer.safetensors": "saves_prune_and_fallback",
    "_write_file manifest.json": "saves_prune_and_fallback",
    "_write_files": "saves_prune_and_fallback",
    "_make_folder": "saves_prune_and_fallback",
    "commit": "saves_prune_and_fallback",
    "_delete": "saves_prune_and_fallback",
    "clean_stale": "save_and_prune",
}


def fails(logs, scratch):
    try:
        check_all(logs, scratch)
    except PromiseBrokenError as error:
        print(error)
        return True
    return False


def test_no_fsync_escapes_the_next_test(scenarios):
    ops = [op for logs in scenarios.values() for log in logs for op in log.ops]
    assert {op.site for op in ops if op.is_fsync} == FSYNCS.keys()


@pytest.mark.slow
@pytest.mark.parametrize("site", sorted(FSYNCS))
def test_without_this_fsync_a_promise_breaks(site, scenarios, scratch):
    assert fails([log.without(site) for log in scenarios[FSYNCS[site]]], scratch)


def test_without_the_rename_a_promise_breaks(scenarios, scratch):
    logs = [log.without(RENAME) for log in scenarios["saves_prune_and_fallback"]]
    assert fails(logs, scratch)


def test_writing_in_place_breaks_a_promise(scenarios, scratch):
    logs = [log.written_in_place() for log in scenarios["saves_prune_and_fallback"]]
    assert fails(logs, scratch)


@pytest.mark.slow
def test_without_the_hash_check_a_promise_breaks(scenarios, scratch, monkeypatch):
    def read_blindly(path, record, *, keep):
        data = path.read_bytes()
        if len(data) != record.size:
            raise DamagedCheckpointError("another size")
        return data

    monkeypatch.setattr(reading, "_read_file", read_blindly)
    assert fails(scenarios["saves_prune_and_fallback"], scratch)


@pytest.mark.slow
def test_pruning_without_reading_back_breaks_a_promise(scratch, monkeypatch):
    monkeypatch.setattr(CheckpointStore, "_is_verified", lambda store, step: True)
    folder = scratch / "blind"
    folder.mkdir()
    logs = record(rot_before_pruning, folder)
    monkeypatch.undo()
    assert fails(logs, scratch)

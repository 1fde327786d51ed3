"""Steps over real shards: the same sequence for any ranks, workers and interruptions."""

from __future__ import annotations

import errno
import gc
import os
from pathlib import Path

import pytest

from mgpt4_hpc.data.batching.loader import LoaderOptions, StepLoader, ValLoader, rank_slice
from mgpt4_hpc.data.batching.workers import StillWaiting
from mgpt4_hpc.data.index.index import ShardIndex
from mgpt4_hpc.data.reading.reader import SampleReader
from mgpt4_hpc.data.sampling.order import SampleOrder, SourceSize
from mgpt4_hpc.errors import ConfigError, DataError, StorageTrouble
from tests.unit.data.batching.loaders import a_loader, an_order
from tests.unit.data.worlds import make_index, text_spec

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    return make_index(tmp_path_factory.mktemp("loader"), 300)


def keys_of(loader: StepLoader, steps: int) -> list[str]:
    with loader:
        return [key for _ in range(steps) for batch in next(loader) for key in batch.keys]


@pytest.mark.parametrize("num_workers", [1, 2, 4])
def test_workers_do_not_change_the_sequence(index: ShardIndex, num_workers: int) -> None:
    alone = keys_of(a_loader(index), 4)
    assert keys_of(a_loader(index, num_workers=num_workers), 4) == alone


def test_ranks_share_out_each_global_batch(index: ShardIndex) -> None:
    whole = keys_of(a_loader(index), 2)
    for world_size in (2, 5):
        ranks = []
        for rank in range(world_size):
            with a_loader(index, rank=rank, world_size=world_size) as loader:
                ranks.append([next(loader), next(loader)])
        merged = [
            key for step in range(2) for rank in ranks for batch in rank[step] for key in batch.keys
        ]
        assert merged == whole


def test_resuming_continues_where_it_stopped(index: ShardIndex) -> None:
    with a_loader(index) as first:
        next(first)
        next(first)
        position = first.position
    assert position == 48
    assert keys_of(a_loader(index, start_position=position), 2) == keys_of(a_loader(index), 4)[48:]


def test_validation_reads_each_held_out_sample_once(index: ShardIndex) -> None:
    order = an_order(index, val_fraction=0.2)
    held_out = {index.key(int(i)) for i in order.lookup_val(0, range(order.val_size(0)))}
    seen = []
    for rank in range(3):
        loader = ValLoader(
            order,
            [index],
            text_spec(),
            16,
            LoaderOptions(micro_batch_size=7, rank=rank, world_size=3),
        )
        batches = list(loader)
        assert len(batches) == len(loader)
        assert [key for batch in loader for key in batch.keys] == [
            key for batch in batches for key in batch.keys
        ], "a second pass reads the same"
        seen += [key for batch in batches for key in batch.keys]
    assert sorted(seen) == sorted(held_out)
    with StepLoader(
        order, [index], text_spec(), 16, LoaderOptions(global_batch_size=240, micro_batch_size=240)
    ) as train:
        assert not held_out & set(next(train)[0].keys)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_validation_may_be_broken_off_and_repeated(index: ShardIndex, num_workers: int) -> None:
    loader = ValLoader(
        an_order(index, 0.2),
        [index],
        text_spec(),
        16,
        LoaderOptions(micro_batch_size=4, num_workers=num_workers),
    )
    loader.start()
    whole = [batch.keys for batch in loader]
    for _ in range(3):
        batches = iter(loader)
        assert [next(batches).keys, next(batches).keys] == whole[:2]
    assert [batch.keys for batch in loader] == whole
    if num_workers:
        pids = {worker.pid for worker in loader._stream._batches._workers}  # type: ignore[union-attr]
        assert [batch.keys for batch in loader] == whole
        assert pids == {worker.pid for worker in loader._stream._batches._workers}  # type: ignore[union-attr]
    loader.close()


@pytest.mark.slow
def test_closing_leaves_no_open_files(index: ShardIndex) -> None:
    def open_files() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    before = open_files()
    for num_workers in (0, 2):
        for _ in range(2):
            with a_loader(index, num_workers=num_workers) as loader:
                next(loader)
    del loader
    gc.collect()
    assert open_files() <= before + 3, "multiprocessing keeps its tracker's pipe"


def test_a_part_of_the_held_out_samples(index: ShardIndex) -> None:
    loader = ValLoader(
        an_order(index, 0.2),
        [index],
        text_spec(),
        16,
        LoaderOptions(micro_batch_size=7),
        max_samples=10,
    )
    assert sum(len(batch) for batch in loader) == loader.num_samples == 10


@pytest.mark.slow
def test_a_shard_that_is_lost_ends_no_validation(tmp_path: Path) -> None:
    """Its held-out samples are neighbours: what stands in for them must lie elsewhere."""
    index = make_index(tmp_path, 8192, per_shard=128)
    order = an_order(index, 0.03)
    held_out = order.lookup_val(0, range(order.val_size(0))).tolist()
    shards = [index.shard_of(sample) for sample in held_out]
    assert len(set(shards)) > 3
    lost = max(shards, key=shards.count)
    index.shard_path(lost).write_bytes(b"something else")
    loader = ValLoader(order, [index], text_spec(), 16, LoaderOptions(micro_batch_size=16))
    batches = list(loader)
    replaced = [entry for batch in batches for entry in batch.substitutions]
    keys = {index.key(sample) for sample in held_out}
    assert len({entry.position for entry in replaced}) == shards.count(lost) > 16
    assert {entry.replaced_by for entry in replaced} <= keys
    assert [batch.keys for batch in loader] == [batch.keys for batch in batches]


@pytest.mark.slow
def test_bad_samples_are_replaced_counted_and_finally_fatal(tmp_path: Path) -> None:
    index = make_index(tmp_path, 120, per_shard=20)
    shard = index.shard_path(2)
    data = bytearray(shard.read_bytes())
    for sample in range(40, 60):
        span = index.locate(sample).parts["jpg"]
        data[span.offset : span.offset + 100] = bytes(100)
    shard.write_bytes(data)

    def substituted(**changes: object) -> list[tuple[int, str, str]]:
        settings = {"global_batch_size": 30, "micro_batch_size": 7, **changes}
        options = LoaderOptions(**settings)  # type: ignore[arg-type]
        loader = StepLoader(an_order(index), [index], text_spec(), 16, options)
        with loader:
            steps = [next(loader) for _ in range(4)]
        return [
            (entry.position, entry.key, entry.replaced_by)
            for step in steps
            for batch in step
            for entry in batch.substitutions
        ]

    replaced = substituted(max_bad_fraction=0.1)
    assert {key for _, key, _ in replaced} >= {f"{number:09d}" for number in range(40, 60)}
    assert not {by for _, _, by in replaced} & {f"{number:09d}" for number in range(40, 60)}
    assert substituted(max_bad_fraction=0.1, num_workers=2) == replaced
    with pytest.raises(DataError, match="000000040"):
        substituted(max_bad_fraction=0.01)


def outage(monkeypatch: pytest.MonkeyPatch, lasts_s: float, code: int) -> list[float]:
    """Storage that fails for so many seconds of a clock that only the readers' pauses move."""
    now = [0.0]
    opened = os.open

    def opening(path: object, *arguments: object, **options: object) -> int:
        if str(path).endswith(".tar") and now[0] < lasts_s:
            raise OSError(code, os.strerror(code))
        return opened(path, *arguments, **options)  # type: ignore[arg-type]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setitem(SampleReader.__init__.__kwdefaults__, "sleep", sleep)  # type: ignore[arg-type]
    monkeypatch.setitem(SampleReader.__init__.__kwdefaults__, "clock", lambda: now[0])  # type: ignore[arg-type]
    return now


def test_an_outage_of_storage_substitutes_nothing(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = keys_of(a_loader(index), 3)
    now = outage(monkeypatch, 29.0, errno.EIO)
    assert keys_of(a_loader(index), 3) == undisturbed
    assert now[0] >= 29.0


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("code", [errno.ESHUTDOWN, errno.ENOENT])
def test_a_longer_one_brings_the_job_back_instead_of_ending_the_run(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch, code: int, num_workers: int
) -> None:
    outage(monkeypatch, 1e9, code)
    with (
        a_loader(index, num_workers=num_workers) as loader,
        pytest.raises(StorageTrouble) as error,
    ):
        next(loader)
    assert not error.value.will_repeat
    assert os.strerror(code) in str(error.value)


def test_a_stop_does_not_wait_for_a_batch_that_does_not_come(
    index: ShardIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, lets_go = os.pipe()
    read = SampleReader.read

    def waits(*arguments: int) -> object:
        os.read(reads, 1)  # returns at the pipe's end
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("mgpt4_hpc.data.batching.worker_stream.LOOK_EVERY_S", 0.02)
    expected = keys_of(a_loader(index), 2)
    asked = []

    def give_up() -> bool:
        asked.append(1)
        return len(asked) in (2, 5)

    def no_more_waiting(worker_id: int) -> None:
        os.close(lets_go)

    with monkeypatch.context() as patch:
        patch.setattr(SampleReader, "read", waits)
        patch.setattr("mgpt4_hpc.data.batching.worker_stream.init_worker", lambda: no_more_waiting)
        loader = a_loader(index, num_workers=1, give_up=give_up)
        loader.start()
    for times in (2, 5):
        with pytest.raises(StillWaiting):
            next(loader._stream)
        assert len(asked) == times
    os.close(lets_go)
    assert keys_of(loader, 2) == expected, "who waits on after all loses nothing"
    os.close(reads)


def test_impossible_settings_are_told_together(index: ShardIndex) -> None:
    with pytest.raises(ConfigError) as error:
        a_loader(index, global_batch_size=2, micro_batch_size=0, world_size=3, start_position=-1)
    assert len(error.value.faults) == 3
    with pytest.raises(ConfigError, match="counts 5 samples"):
        StepLoader(
            SampleOrder([SourceSize("toy", 5)], 0),
            [index],
            text_spec(),
            16,
            LoaderOptions(global_batch_size=1, micro_batch_size=1),
        )


def test_slices_cover_the_batch() -> None:
    for world_size in range(1, 70):
        slices = [rank_slice(67, rank, world_size) for rank in range(world_size)]
        assert [begin for begin, _ in slices[1:]] == [end for _, end in slices[:-1]]
        sizes = {end - begin for begin, end in slices}
        assert max(sizes) - min(sizes) <= 1

"""The order: exactly once an epoch, exactly mixed, the same for every layout and for ever."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mgpt4_hpc.data.batching.loader import step_positions
from mgpt4_hpc.data.sampling.order import (
    SampleOrder,
    SourceSize,
    block_samples,
    keyed_permutation,
    keyed_words,
    mixing_pattern,
)
from mgpt4_hpc.errors import ConfigError

LAION_CC_SBU = [SourceSize("laion", 1_000_003, 115), SourceSize("cc_sbu", 70_001, 14)]


def drawn(order: SampleOrder, positions: object) -> list[tuple[int, int]]:
    sources, samples = order.lookup(positions)  # type: ignore[arg-type]
    return list(zip(sources.tolist(), samples.tolist(), strict=True))


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 700), min_size=1, max_size=3),
    weights=st.lists(st.integers(1, 9), min_size=3, max_size=3),
    granularity=st.integers(1, 5),
    val_fraction=st.sampled_from([0.0, 0.0, 0.02, 0.3]),
    seed=st.integers(0, 2**40),
)
def test_every_epoch_draws_every_sample_once(
    sizes: list[int], weights: list[int], granularity: int, val_fraction: float, seed: int
) -> None:
    sources = [SourceSize(f"s{i}", size, weights[i]) for i, size in enumerate(sizes)]
    order = SampleOrder(sources, seed, granularity, val_fraction)
    # Two epochs and a bit of the source that takes longest, unless another had 30 by then.
    cycles = [source.num_samples / (source.weight * granularity) for source in sources]
    num_cycles = math.ceil(min(2.3 * max(cycles), 30 * min(cycles)))
    num_positions = num_cycles * granularity * sum(source.weight for source in sources)
    check_epochs(order, num_positions)


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 65_791, 65_793, 81_920, 82_001])
@pytest.mark.parametrize("val_fraction", [0.0, 0.003])
def test_the_short_block_may_fall_into_any_window(size: int, val_fraction: float) -> None:
    for seed in range(4):
        check_epochs(SampleOrder([SourceSize("s", size)], seed, 1, val_fraction), 2 * size)


def check_epochs(order: SampleOrder, num_positions: int) -> None:
    """Each epoch is a permutation of what is not held out, and so is the beginning of one."""
    source_ids, sample_ids = order.lookup(np.arange(num_positions))
    for source_id, source in enumerate(order.sources):
        mine = sample_ids[source_ids == source_id]
        epoch = order.num_train(source_id)
        held_out = order.lookup_val(source_id, range(order.val_size(source_id)))
        assert epoch + len(held_out) == source.num_samples
        for begin in range(0, len(mine) - epoch + 1, epoch):
            once = np.concatenate([mine[begin : begin + epoch], held_out])
            assert (np.sort(once) == np.arange(source.num_samples)).all()
        rest = np.concatenate([mine[len(mine) // epoch * epoch :], held_out])
        assert len(np.unique(rest)) == len(rest)


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.integers(1, 200), min_size=1, max_size=5),
    granularity=st.integers(1, 7),
    cycle=st.integers(0, 10**9),
)
def test_each_cycle_has_exactly_the_weights(
    weights: list[int], granularity: int, cycle: int
) -> None:
    sources = [SourceSize(f"s{i}", 1000, weight) for i, weight in enumerate(weights)]
    order = SampleOrder(sources, 0, granularity)
    length = sum(weights) * granularity
    source_ids, _ = order.lookup(np.arange(length) + cycle * length)
    assert np.bincount(source_ids).tolist() == [weight * granularity for weight in weights]
    assert (source_ids.reshape(-1, granularity) == source_ids[::granularity, None]).all()


def test_laion_to_cc_sbu_is_115_to_14_and_evenly_spread() -> None:
    order = SampleOrder(LAION_CC_SBU, 1)
    source_ids, _ = order.lookup(np.arange(129 * 50))
    assert (source_ids.reshape(50, 129).sum(axis=1) == 14).all()
    gaps = np.diff(np.flatnonzero(source_ids))
    assert set(gaps.tolist()) <= {8, 9, 10}
    assert mixing_pattern([1]).tolist() == [0]


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_any_schedule_consumes_the_same_sequence(data: st.DataObject) -> None:
    """Kills at any step, other world sizes at each resume, workers ahead, accumulation."""
    draw = data.draw
    weights = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    sources = [
        SourceSize(f"s{i}", draw(st.integers(2, 400)), weight) for i, weight in enumerate(weights)
    ]
    order = SampleOrder(sources, draw(st.integers(0, 99)), draw(st.integers(1, 4)))
    batch = draw(st.integers(1, 96))
    position, consumed = 0, []
    for _ in range(draw(st.integers(1, 4))):  # attempts
        world_size = draw(st.integers(1, min(64, batch)))
        accumulation = draw(st.integers(1, 8))
        micro = -(-batch // (world_size * accumulation))
        committed = draw(st.integers(0, 3))  # steps until the checkpoint
        lost = draw(st.integers(0, 2))  # steps after it, that the kill undoes
        ahead = draw(st.integers(0, 4))  # micro-batches that workers had prepared
        for step in range(committed + lost):
            begin = position + step * batch
            ranks = [
                step_positions(begin, batch, micro, rank, world_size) for rank in range(world_size)
            ]
            assert all(1 <= len(rank) <= accumulation for rank in ranks)
            flat = [where for rank in ranks for chunk in rank for where in chunk]
            # What workers looked up ahead of the kill leaves no trace.
            order.lookup(np.arange(begin, begin + ahead * micro))
            if step < committed:
                consumed += drawn(order, flat)
        position += committed * batch
    assert consumed == drawn(
        SampleOrder(order.sources, order.seed, order.granularity), range(position)
    )
    for source_id in range(len(sources)):
        mine = [sample for source, sample in consumed if source == source_id]
        size = order.num_train(source_id)
        for begin in range(0, len(mine), size):
            assert max(Counter(mine[begin : begin + size]).values()) == 1


def test_golden_vectors() -> None:
    """The same for ever: a change here would silently change every running experiment."""
    assert keyed_words(3, 42, "golden").tolist() == [
        17850797217619071087, 14452393229767218291, 11957769322619885439,
    ]  # fmt: skip
    assert keyed_permutation(10, 42, "golden").tolist() == [5, 4, 9, 6, 3, 2, 1, 7, 0, 8]
    order = SampleOrder(LAION_CC_SBU, 42, val_fraction=0.01)
    assert drawn(order, [0, 1, 2, 3, 4, 5, 1000, 10**6, 10**7, 10**9]) == [
        (0, 588944), (0, 323220), (0, 780106), (0, 712648), (1, 12476), (0, 448905),
        (0, 654873), (0, 161850), (0, 783363), (0, 775691),
    ]  # fmt: skip
    source_ids, sample_ids = order.lookup(np.arange(200_000))
    sequence = source_ids.astype("<i4").tobytes() + sample_ids.astype("<i8").tobytes()
    assert hashlib.sha256(sequence).hexdigest() == (
        "25e488b7847f87c2560070445318e3e3bca3614865755aca7bf6bd029286ece1"
    )
    assert [order.val_size(0), order.val_size(1)] == [9984, 768]
    assert order.lookup_val(0, [0, 1, 256, 5000]).tolist() == [2048, 2049, 18944, 367240]
    assert [order.substitute(1, 5, 1), order.substitute(1, 5, 2)] == [58265, 2190]
    assert [order.substitute_val(1, 5, 1), order.substitute_val(1, 5, 2)] == [15363, 20297]
    assert order.digest == "175a973442593b34f286bf9f3a479193"
    grained = SampleOrder([SourceSize("a", 10, 2), SourceSize("b", 7, 1)], 0, granularity=3)
    assert drawn(grained, range(18)) == [
        (0, 5), (0, 4), (0, 8), (1, 6), (1, 5), (1, 2), (0, 6), (0, 7), (0, 2),
        (0, 0), (0, 1), (0, 3), (1, 4), (1, 1), (1, 3), (0, 9), (0, 7), (0, 0),
    ]  # fmt: skip


@pytest.mark.slow
def test_epochs_differ_and_reads_stay_within_a_window() -> None:
    order = SampleOrder([SourceSize("big", 1_000_000)], 3)
    _, first = order.lookup(np.arange(1_000_000))
    _, second = order.lookup(np.arange(1_000_000, 1_016_384))
    assert (first[:16_384] != second).mean() > 0.99
    for begin in (0, 16_384, 10 * 16_384):
        window = first[begin : begin + 16_384]
        assert len(np.unique(window // 256)) == 64, "64 blocks of neighbours"
    # Positions and samples are uncorrelated, and neighbours do not follow each other.
    assert abs(np.corrcoef(np.arange(1_000_000), first)[0, 1]) < 0.02
    assert (np.abs(np.diff(first)) < 4).mean() < 0.05


def test_held_out_blocks_do_not_depend_on_the_seed() -> None:
    orders = [SampleOrder(LAION_CC_SBU, seed, val_fraction=0.02) for seed in (1, 2)]
    held_out = [order.lookup_val(0, range(order.val_size(0))) for order in orders]
    assert (held_out[0] == held_out[1]).all()
    assert 0.015 < len(held_out[0]) / 1_000_003 < 0.025
    for order in orders:
        for position in range(50):
            assert order.substitute(0, position, 1) not in held_out[0]


def test_another_source_leaves_the_first_ones_order_alone() -> None:
    alone = SampleOrder([SourceSize("a", 5000)], 9)
    mixed = SampleOrder([SourceSize("b", 300, 2), SourceSize("a", 5000, 3)], 9)
    source_ids, sample_ids = mixed.lookup(np.arange(1000))
    assert sample_ids[source_ids == 1].tolist() == alone.lookup(np.arange(600))[1].tolist()


def test_small_sources_have_small_blocks() -> None:
    assert [block_samples(n) for n in (1, 255, 512, 3500, 65_535, 65_536, 10**8)] == [
        1, 1, 2, 8, 128, 256, 256,
    ]  # fmt: skip


def test_digest_tells_every_setting() -> None:
    base = SampleOrder([SourceSize("a", 500)], 1)
    others = [
        SampleOrder([SourceSize("a", 500)], 2),
        SampleOrder([SourceSize("a", 501)], 1),
        SampleOrder([SourceSize("b", 500)], 1),
        SampleOrder([SourceSize("a", 500, 2)], 1),
        SampleOrder([SourceSize("a", 500)], 1, granularity=2),
        SampleOrder([SourceSize("a", 500)], 1, val_fraction=0.1),
    ]
    assert len({base.digest, *(order.digest for order in others)}) == 7
    assert SampleOrder([SourceSize("a", 500)], 1).digest == base.digest


def test_faults_are_told_together() -> None:
    with pytest.raises(ConfigError) as error:
        SampleOrder([SourceSize("a", 0), SourceSize("a", 5, 0)], 1, 0, 1.0)
    assert len(error.value.faults) == 5
    with pytest.raises(ConfigError, match="no source"):
        SampleOrder([], 1)
    with pytest.raises(ConfigError, match="nothing to train on in tiny"):
        SampleOrder([SourceSize("tiny", 1)], 1, val_fraction=0.1)
    with pytest.raises(ConfigError, match="cycle of 200001"):
        SampleOrder([SourceSize("a", 5, 200_000), SourceSize("b", 5)], 1)
    with pytest.raises(ValueError, match="negative"):
        SampleOrder([SourceSize("a", 5)], 1).lookup([3, -1])


@pytest.mark.slow
def test_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "import mgpt4_hpc.data.sampling.order, mgpt4_hpc.data.index.index\n"
        "import mgpt4_hpc.data.index.shard_list, mgpt4_hpc.data.batching.text\n"
        "import mgpt4_hpc.data.reading.reader, mgpt4_hpc.data.images.decode\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

"""A rank that hangs: the others say where they wait, the attempt ends, the next one goes on."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from mgpt4_hpc.errors import EXIT_HUNG, EXIT_RESUMABLE
from mgpt4_hpc.telemetry.ledger import read_ledgers
from tests.integration.test_resume import MAX_STEPS, make_run, train_through
from tests.support.runs import (
    ForkedRanks,
    assert_every_step_once,
    curve,
    final_projector,
    last_step,
    patience,
    wait_until,
)
from tests.support.tiny_world import TinyWorld


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkedRanks]:
    forked = ForkedRanks(logs=tmp_path_factory.mktemp("logs"))
    yield forked
    forked.close()


def test_a_stopped_rank_0_is_found_out_by_its_peer_and_the_run_goes_on(
    ranks: ForkedRanks, tiny_world: TinyWorld, tmp_path: Path
) -> None:
    alone = make_run(tiny_world, tmp_path / "alone", 2)
    train_through(ranks, alone, 2)

    settings = {"train__hang_timeout_s": 1.5 * patience(), "train__save_every_s": 0.2}
    broken = make_run(tiny_world, tmp_path / "broken", 2, **settings)
    pids = ranks.start(broken, 2)
    wait_until(lambda: last_step(broken) >= 10, 60, "step 10")
    os.kill(pids[0], signal.SIGSTOP)
    wait_until(lambda: ranks.ended(1), 60, "the other rank ended itself")
    os.kill(pids[0], signal.SIGKILL)  # as srun does, once one of its tasks ended badly
    assert ranks.wait() == [-signal.SIGKILL, EXIT_HUNG]

    told = ranks.log(1)
    assert "=== hang: no sign of life" in told
    assert "loop.py" in told and "watchdog.py" in told, "the stacks of both threads"
    (attempt,) = read_ledgers(broken / "ledger")
    assert [(hang["rank"], hang["phase"]) for hang in attempt.hangs] == [(1, "step")]
    assert 0 < attempt.hangs[0]["step"] < MAX_STEPS

    train_through(ranks, broken, 2)
    assert final_projector(broken) == final_projector(alone)
    assert curve(broken) == curve(alone)
    assert_every_step_once(broken, MAX_STEPS)


@pytest.mark.parametrize(("rank", "together"), [(1, "no"), (0, "yes")])
def test_a_stop_of_one_rank_while_all_are_starting_ends_them_together(
    ranks: ForkedRanks, tiny_world: TinyWorld, tmp_path: Path, rank: int, together: str
) -> None:
    run = make_run(tiny_world, tmp_path / "run", 2, model__read_once_per_node=together)
    pids = ranks.start(run, 2)
    wait_until(lambda: list((run / "attempts").iterdir()), 60, "the attempt is claimed")
    ranks.terminate([pids[rank]])
    assert ranks.wait() == [EXIT_RESUMABLE, EXIT_RESUMABLE]
    train_through(ranks, run, 2)
    assert_every_step_once(run, MAX_STEPS)

"""A run and its folder, machine and clock: each fault ends with the bits of a run left alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm import folder_faults as strikes
from tests.slurm.fault_table import SAVE_OFTEN
from tests.slurm.faults import Fault, told_that_it_cannot_save
from tests.slurm.harness import Cluster
from tests.slurm.test_faults import config as config
from tests.slurm.test_faults import run_fault
from tests.slurm.test_faults import runs as runs
from tests.slurm.test_faults import site as site
from tests.slurm.test_faults import undisturbed as undisturbed

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1200)]

FAULTS = (
    Fault(
        "fsync takes a second more, and there are no hard links",
        strikes.slow_without_links,
        "preempted > finished",
        settings=SAVE_OFTEN,
        preloaded=True,
    ),
    Fault(
        "quota reached when a checkpoint gets its name",
        strikes.quota_reached,
        "finished",
        ranks=1,
        settings=SAVE_OFTEN,
        preloaded=True,
        check=told_that_it_cannot_save,
    ),
    Fault(
        "the folder's mount vanishes and returns",
        strikes.folder_away,
        "finished",
        ranks=1,
        in_ci=True,
        settings=SAVE_OFTEN,
    ),
    Fault(
        "an older backup is put in the folder's place",
        strikes.backup_restored,
        ".* > finished",
        ranks=1,
        in_ci=True,
        settings=SAVE_OFTEN,
        replays=True,
    ),
    Fault(
        "the kernel kills a rank that is out of memory",
        strikes.out_of_memory,
        "crashed > finished",
        settings=SAVE_OFTEN,
        replays=True,
    ),
    Fault(
        "a rank has a twentieth of a processor for a while",
        strikes.starved,
        "finished",
    ),
    Fault(
        "all processes are stopped, and continued",
        strikes.all_stopped,
        "finished",
        settings={"hang_timeout_s": 8},
    ),
    Fault(
        "the ports are taken, and another run meets on the same nodes",
        strikes.ports_taken,
        "requeued > finished",
        settings=SAVE_OFTEN,
        check=strikes.as_its_twin,
    ),
    Fault(
        "a node's clock is an hour ahead",
        strikes.clock_apart,
        "requeued > bad node > finished",
        settings=SAVE_OFTEN,
        preloaded=True,
    ),
    Fault(
        "a node's clock jumps by an hour and back",
        strikes.clock_jumps,
        "finished",
        settings=SAVE_OFTEN,
        preloaded=True,
    ),
    Fault(
        "100 scancel in a row during a save",
        strikes.cancelled_a_hundred_times,
        "cancelled",
        ranks=1,
        ends="cancelled",
        settings=SAVE_OFTEN,
        preloaded=True,
    ),
)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(fault, id=fault.id, marks=() if fault.in_ci else pytest.mark.soak)
        for fault in FAULTS
    ],
)
def test_fault(
    fault: Fault,
    site: Callable[[tuple[str, ...]], Cluster],
    undisturbed: Callable[[int], Path],
    config: Path,
    runs: Path,
    record_property: Callable[[str, object], None],
) -> None:
    run_fault(fault, site(fault.site), undisturbed(fault.ranks), config, runs, record_property)

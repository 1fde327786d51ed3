"""Each fault on a real Slurm: the run ends with the bits of one that was left alone, or stops
cleanly.

The likeliest run every time, the others in a soak, which also holds them to times and writes
docs/reliability.md from what is recorded here.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import pytest

from mgpt4_hpc.telemetry.ledger import read_ledgers, read_records
from tests.slurm.conftest import own_cluster
from tests.slurm.fault_table import FAULTS
from tests.slurm.faults import STEPS, Fault, Victim
from tests.slurm.harness import Cluster
from tests.slurm.jobs import long_config, submit, wait_finished
from tests.support.runs import assert_every_step_once, curve, final_projector
from tests.support.tiny_world import TinyWorld

pytestmark = pytest.mark.slurm

MAX_DURABLE_S = 5.0
MAX_FIRST_STEP_S = 60.0


@pytest.fixture(scope="module")
def config(tiny_world: TinyWorld, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return long_config(tiny_world, tmp_path_factory.mktemp("config") / "tiny.yaml", STEPS)


@pytest.fixture(scope="module")
def undisturbed(
    cluster: Cluster, config: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[int], Path]:
    """The same run left alone on so many ranks: what every other must equal."""
    done: dict[int, Path] = {}

    def run(ranks: int) -> Path:
        if ranks not in done:
            runs = tmp_path_factory.mktemp("undisturbed")
            submit(cluster, runs, config, "alone", ranks=ranks)
            wait_finished(cluster, runs / "alone", alive=cluster.squeue)
            done[ranks] = runs / "alone"
        return done[ranks]

    return run


@pytest.fixture(scope="module")
def site(
    cluster: Cluster, request: pytest.FixtureRequest
) -> Iterator[Callable[[tuple[str, ...]], Cluster]]:
    """Clusters by the flags that they are started with; each lives until the last test."""
    clusters = {(): cluster}
    with ExitStack() as running:

        def find(flags: tuple[str, ...]) -> Cluster:
            if flags not in clusters:
                clusters[flags] = running.enter_context(own_cluster(request.session, *flags))
            return clusters[flags]

        yield find


@pytest.fixture
def runs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """Where the run's folder will be; a file system of its own for a fault that wants one."""
    folder = tmp_path / "runs"
    folder.mkdir()
    fault: Fault = request.getfixturevalue("fault")
    if not fault.small_disk:
        yield folder
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "small", folder], check=True)
    try:
        yield folder
    finally:
        shutil.copytree(folder, tmp_path / "kept", symlinks=True)
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, id=fault.id, marks=fault.marks) for fault in FAULTS],
)
def test_fault(
    fault: Fault,
    site: Callable[[tuple[str, ...]], Cluster],
    undisturbed: Callable[[int], Path],
    config: Path,
    runs: Path,
    record_property: Callable[[str, object], None],
) -> None:
    where = site(fault.site)
    seen = run_fault(fault, where, undisturbed(fault.ranks), config, runs, record_property)
    if os.environ.get("MGPT4_ASSERT_TIMES") == "1":
        assert (seen.durable_s or 0) <= MAX_DURABLE_S, "from the signal to the durable checkpoint"
        assert (seen.first_step_s or 0) <= MAX_FIRST_STEP_S, "from the restart to its first step"


def run_fault(
    fault: Fault,
    cluster: Cluster,
    alone: Path,
    config: Path,
    runs: Path,
    record_property: Callable[[str, object], None],
) -> Measured:
    """Submit a run, let the fault strike, and hold what came of it against a run left alone."""
    record_property("fault", fault.name)
    chosen = {**fault.settings, **(_preloaded(runs) if fault.preloaded else {})}
    settings = chain.from_iterable(("--set", f"{k}={v}") for k, v in chosen.items())
    job = submit(
        cluster, runs, config, "run", "--partition", "a100-preempt", *settings, ranks=fault.ranks
    )
    victim = Victim(cluster, runs / "run", job, fault.ranks)
    try:
        fault.strike(victim)
        if fault.ends == "finished":
            wait_finished(cluster, victim.run, timeout_s=240, alive=victim.is_queued)
    finally:
        seen = measure(victim.run)
        for name, value in seen.properties().items():
            record_property(name, value)
        cluster.cancel_all()

    assert re.fullmatch(fault.causes, seen.causes), seen.causes
    assert fault.replays or seen.steps_replayed == 0
    if fault.ends == "finished":
        _assert_as_alone(victim.run, alone, exactly=not fault.other_ranks)
    else:
        _assert_stopped(victim, fault.ends)
    if fault.check is not None:
        fault.check(victim)
    return seen


def _preloaded(runs: Path) -> dict[str, str]:
    """Settings that load libfaults.c into a run's processes."""
    library = runs.with_name("libfaults.so")
    source = Path(__file__).with_name("libfaults.c")
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    runs.with_name("faults").mkdir()
    folder = runs.with_name("faults")
    return {"launch.env": f"{{LD_PRELOAD: {library}, FAULT_DIR: {folder}}}"}


def _assert_as_alone(run: Path, alone: Path, *, exactly: bool) -> None:
    assert_every_step_once(run, STEPS)
    if exactly:
        assert final_projector(run) == final_projector(alone)
        assert curve(run) == curve(alone)
        return
    # Another order of samples would show at once: each has a loss of its own.
    assert curve(run) == [
        (step, pytest.approx(loss, rel=0, abs=1e-4)) for step, loss in curve(alone)
    ]


def _assert_stopped(victim: Victim, state: str) -> None:
    job = victim.cluster.job(victim.job)
    assert (job["JobState"], job["Restarts"]) == (state.upper(), "0")
    (attempt,) = victim.attempts()
    assert attempt.cause == state
    assert attempt.last_saved_step == attempt.last_step


@dataclass(frozen=True)
class Measured:
    """What a run's ledgers tell of its faults.

    Attributes:
        attempts: how many.
        causes: of each, joined by " > ".
        steps_replayed: steps done twice.
        durable_s: longest time from a signal to the durable checkpoint; where the end was known
            and steps were made until near it, from the last of them. None without both.
        first_step_s: longest time from a restart's process to its first finished step.
    """

    attempts: int
    causes: str
    steps_replayed: int
    durable_s: float | None
    first_step_s: float | None

    def properties(self) -> dict[str, object]:
        """As they stand in the test's report; without those that are not known."""
        return {name: value for name, value in vars(self).items() if value is not None}


def measure(run: Path) -> Measured:
    """Read a run's ledgers."""
    attempts = read_ledgers(run / "ledger")
    durable = [_durable_s(path) for path in (run / "ledger").glob("attempt-*.jsonl")]
    first_steps = [a.first_step_at - a.start for a in attempts[1:] if a.first_step_at is not None]
    return Measured(
        len(attempts),
        " > ".join(attempt.cause for attempt in attempts),
        sum(attempt.steps_replayed for attempt in attempts),
        max((seconds for seconds in durable if seconds is not None), default=None),
        max(first_steps, default=None),
    )


def _durable_s(ledger: Path) -> float | None:
    """Seconds from the signal until all that was done is durable; None without a signal."""
    records = read_records(ledger)
    signals = [r for r in records if r["kind"] == "signal"]
    last_step = max((r["step"] for r in records if r.get("step") is not None), default=None)
    saves = [r for r in records if r["kind"] == "save" and r["step"] == last_step]
    if not signals or not saves:
        return None
    since, durable = signals[0]["t"], saves[0]["t"]
    if signals[0].get("deadline") is not None:
        since = max([since, *(r["t"] for r in records if r["kind"] == "steps")])
    return max(0.0, durable - since)

"""Looking into run directories, and driving ranks without a scheduler."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

REPO = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPO)}


def patience() -> float:
    """By how much waits are longer on this machine than on one that has nothing else to do."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


class Patience:
    """A limit that grows while others keep the machine busy.

    Args:
        timeout_s: of an idle machine.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._factor = 1.0
        self._since = time.monotonic()

    def is_over(self) -> bool:
        """Whether the limit has passed; the busiest moment so far counts."""
        self._factor = max(self._factor, patience())
        return time.monotonic() - self._since > self._timeout_s * self._factor

    def __str__(self) -> str:
        return f"{self._timeout_s * self._factor:.0f} s"


def wait_until(condition: Callable[[], object], timeout_s: float, what: str) -> None:
    """Ask until true; fail with ``what`` after ``timeout_s``, or later on a busy machine."""
    waited = Patience(timeout_s)
    while not condition():
        assert not waited.is_over(), f"not within {waited}: {what}"
        time.sleep(0.05)


def records(run: Path) -> list[dict]:
    """Every whole line of a run's ledgers, in the order of the attempts."""
    found = []
    for path in sorted((run / "ledger").glob("attempt-*.jsonl")):
        for line in path.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def last_step(run: Path) -> int:
    """Newest step that a ledger tells of."""
    return max((int(r.get("step", 0)) for r in records(run)), default=0)


def final_projector(run: Path) -> str:
    """SHA-256 of the newest checkpoint's projector file."""
    newest = max((run / "checkpoints").glob("step-*"))
    return hashlib.sha256((newest / "projector.safetensors").read_bytes()).hexdigest()


def curve(run: Path, tag: str = "train/loss") -> list[tuple[int, float]]:
    """Points of a TensorBoard curve, as TensorBoard itself reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    accumulator.Reload()
    return [(event.step, event.value) for event in accumulator.Scalars(tag)]


def assert_every_step_once(run: Path, max_steps: int) -> None:
    """Each step has exactly one loss."""
    counts = Counter(step for step, _ in curve(run))
    assert counts == Counter(range(1, max_steps + 1)), counts


def log(run: Path) -> str:
    """All of rank 0's output."""
    return "\n".join(path.read_text() for path in sorted((run / "slurm").glob("*_0_log.out")))


class ForkedRanks:
    """Gloo ranks on this host without any launcher: one process that forks them.

    Torch is imported once for all starts of a test, and the signals are real.

    Args:
        logs: folder for what each rank writes; by default it goes to our stderr.
    """

    def __init__(self, logs: Path | None = None) -> None:
        self.logs = logs
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.fork_ranks", *([str(logs)] if logs else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT,
            cwd=REPO,
        )

    def start(self, run: Path, world_size: int) -> list[int]:
        """Fork the ranks of one attempt; their process ids."""
        return self._ask({"run": str(run), "world_size": world_size})

    def wait(self) -> list[int]:
        """Exit codes of the ranks started last."""
        return self._ask({"wait": True})

    def ended(self, rank: int) -> bool:
        """Whether this rank is over; :meth:`wait` still has its exit code."""
        return bool(self._ask({"ended": rank})[0])

    def log(self, rank: int) -> str:
        """What this rank has written so far, over all starts."""
        assert self.logs is not None
        return (self.logs / f"{rank}.log").read_text()

    def terminate(self, pids: list[int]) -> None:
        """What Slurm does at the start of a preemption's grace time."""
        for pid in pids:
            os.kill(pid, signal.SIGTERM)

    def _ask(self, request: dict) -> list[int]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the forking process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(timeout=60 * patience())

"""Every exception that this package raises for a user's eyes.

Each carries what is wrong, why it matters and what to do, and knows the exit code of the
command that it ends::

    MgptError                  1   the run failed
    ├── ConfigError            2   a setting or argument is wrong
    ├── PreflightError         3   something the job needs is missing
    ├── SlurmRejected          4   Slurm refused the job
    ├── SlurmUnreachable       5   Slurm does not answer
    │   └── SlurmUnconfirmed   5   no confirmation: Slurm may have done it
    ├── NoSuchRun              6   no run of that name or path
    │   └── NoSuchStep         6   the run has no checkpoint of that step
    ├── RunLocked              7   another attempt owns the run, or it changed since it started
    │   ├── RunAlive           7   a job of the run waits or runs
    │   ├── RunDamaged         7   a file of the run is empty or cut, as after a power loss
    │   └── Overtaken          7   a newer attempt owns the run: not failed, and not ours any more
    │       └── Displaced      7   the run's folder is gone, or another run's
    ├── DataError              1   a shard, index or sample
    │   └── WorkerDied         1   a process that reads data is gone, perhaps only this once
    ├── WeightsError           1   a weight file, bundle or tokenizer
    ├── CheckpointError        1   no checkpoint could be written or verified
    ├── RendezvousError        1   the ranks did not find each other
    ├── StorageTrouble         1   shared storage does not answer, perhaps only now
    ├── FatalTrainingError     70  it would fail the same way again: never requeued
    ├── UnsafeRun              7   others can write what the run would execute
    └── BadNode                71  this node, not the run, is at fault

A programming mistake stays an AssertionError or whatever Python raises: it is not for users.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence

EXIT_RESUMABLE = 75
"""Trainer's exit code for "stopped, can go on" (EX_TEMPFAIL of sysexits.h)."""

EXIT_HUNG = 72
"""Trainer's exit code for "no step for too long", by its own watchdog."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean ...?``, to be put behind a bad name; empty if none of the known is near."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {near[0]}?" if near else ""


class MgptError(Exception):
    """What went wrong, and how to mend it.

    Args:
        what: one sentence that names the bad value.
        why: why that is a problem, where it is not plain.
        fix: what to do now, as a command or a setting where possible.
    """

    exit_code = 1
    will_repeat = True
    """Whether the same job would fail the same way again, so that requeueing it is pointless."""

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"  why: {self.why}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # Exceptions cross process boundaries (ranks, data workers); keyword-only fields and those
        # of subclasses need a hand.
        return (_rebuild, (type(self), self.args), self.__dict__)


def _rebuild(cls: type[MgptError], args: tuple[object, ...]) -> MgptError:
    error = cls.__new__(cls)
    error.args = args
    return error


class FaultList(MgptError):
    """Several independent faults in one error.

    A researcher must not learn of a second mistake after a second night in the queue.
    """

    def __init__(
        self, what: str, *, faults: Sequence[str] = (), why: str = "", fix: str = ""
    ) -> None:
        listed = "".join(f"\n  - {fault}" for fault in faults)
        super().__init__(what + listed, why=why, fix=fix)
        self.faults = list(faults)


class ConfigError(FaultList):
    """A setting, option or argument is wrong."""

    exit_code = 2


class PreflightError(FaultList):
    """Something that the job needs is missing or would refuse it."""

    exit_code = 3


class SlurmRejected(MgptError):
    """Slurm answered, and said no."""

    exit_code = 4


class SlurmUnreachable(MgptError):
    """Slurm's controller or its commands do not answer."""

    exit_code = 5
    will_repeat = False


class SlurmUnconfirmed(SlurmUnreachable):
    """Slurm received a request and did not confirm it: it may have done it, or may still do it."""


class NoSuchRun(MgptError):
    """No run directory under that name or path."""

    exit_code = 6


class NoSuchStep(NoSuchRun):
    """The run has no checkpoint of that step."""


class RunLocked(MgptError):
    """Another attempt owns the run, or its inputs changed since it started."""

    exit_code = 7


class RunAlive(RunLocked):
    """A job of the run waits or runs, so that a second one would only be fenced off."""


class RunDamaged(RunLocked):
    """A file of the run is not what was written: empty or cut, as a power loss leaves it."""


class Overtaken(RunLocked):
    """A newer attempt owns the run: this one must write nothing more, and is not requeued."""


class Displaced(Overtaken):
    """The run's folder is gone or holds another run: this job has nowhere to write."""


class DataError(MgptError):
    """A shard, an index or a sample is missing or broken."""


class WorkerDied(DataError):
    """A process that reads data was killed: the next start may have more memory."""

    will_repeat = False


class WeightsError(MgptError):
    """A weight file, bundle or tokenizer is missing, broken or of another model."""


class CheckpointError(MgptError):
    """A checkpoint could not be written, found or verified."""

    will_repeat = False


class RendezvousError(MgptError):
    """The ranks did not find each other."""

    will_repeat = False


class StorageTrouble(MgptError):
    """Shared storage refuses or hides what was there before: worth another start."""

    will_repeat = False


class FatalTrainingError(MgptError):
    """Training would fail the same way again; requeueing it would only burn GPU hours."""

    exit_code = 70


class UnsafeRun(MgptError):
    """Others than the user can write the run's folder, or own something in it."""

    exit_code = 7


class BadNode(MgptError):
    """The node is at fault: its GPU, scratch space or clock."""

    exit_code = 71
    will_repeat = False
    nodes: Mapping[str, str] = {}
    """Node to its faults, where it is known by name."""

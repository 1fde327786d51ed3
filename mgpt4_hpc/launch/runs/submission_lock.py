"""One submission of a run at a time, by the user, by ``mgpt4 keep``, or by the run's own job."""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mgpt4_hpc.errors import MgptError, RunLocked
from mgpt4_hpc.output_files import remove_older
from mgpt4_hpc.run_dir import RunDir
from mgpt4_hpc.text_files import text_of

_STALE_S = 3600.0
"""Seconds after which a lock's owner is dead: no submission takes as long."""


@contextmanager
def submitting(run: RunDir) -> Iterator[None]:
    """Hold the run while its job is looked for and a new one submitted.

    Two jobs of one run do no harm (the newer one fences the older off), but waste its GPUs.

    Raises:
        RunLocked: if another command is at it.
    """
    lock = run.slurm / ".submitting"
    remove_older(lock, _STALE_S)  # a killed command must not keep `mgpt4 keep` out for ever
    try:
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        # Empty while the other command writes it, gone once it is done.
        other = f" ({owner})" if (owner := text_of(lock)) else ""
        raise RunLocked(
            f"{run.name} is being submitted by another command{other}",
            fix=f"wait a moment; if that command was killed: rm {shlex.quote(str(lock))}",
        ) from None
    except OSError as error:
        raise MgptError(f"{lock} cannot be written: {error.strerror}") from error
    try:
        with os.fdopen(handle, "w") as file:
            file.write(f"process {os.getpid()} on {os.uname().nodename}, {time.ctime()}")
        yield
    finally:
        lock.unlink(missing_ok=True)

"""Before srun: leave at once where there is nothing left to do for this start of a job.

Slurm may start a job once more that has finished its run, was given up or was cancelled. The batch
script asks here before it loads anything; what is printed is the code to leave with.
"""

from __future__ import annotations

import os
import sys
from contextlib import redirect_stdout
from pathlib import Path

from mgpt4_hpc.errors import EXIT_RESUMABLE, FatalTrainingError, MgptError
from mgpt4_hpc.launch.job.environment import start_of
from mgpt4_hpc.launch.job.job_end import end_finished, end_unfinished
from mgpt4_hpc.launch.job.successor import of_its_line
from mgpt4_hpc.launch.runs.cancel_request import is_cancelled
from mgpt4_hpc.launch.runs.run_facts import read_facts
from mgpt4_hpc.launch.slurm.job_start import JobStart
from mgpt4_hpc.retry import retry_storage
from mgpt4_hpc.run_dir import RunDir

GO_ON = 3
"""Our own exit code where the start is wanted; any but 0 has the batch script go on."""
_PAUSES_S = (0.5, 1.0)


def why_leave(run: RunDir, start: JobStart) -> tuple[int, str] | None:
    """The code to leave with and the reason; None if this start is wanted.

    Raises:
        OSError, StorageTrouble: the run's folder cannot be read.
    """
    if read_facts(run).finished:
        return 0, f"{run.name} is finished: nothing is left to do"
    # A first start is the user's wish to try again; only this job's own verdict keeps it away.
    if start.restart_count and run.failed.exists():
        return FatalTrainingError.exit_code, f"{run.name} was given up: {run.failed.read_text()}"
    if is_cancelled(run, start, pauses_s=_PAUSES_S):
        return EXIT_RESUMABLE, f"{run.name} was cancelled"
    return None


def main() -> int:
    """Entry of the batch script's line before srun; prints a code if the start is to end."""
    with redirect_stdout(sys.stderr):  # the shell takes the code, and the log all else
        code = _check(RunDir(Path(sys.argv[1])), start_of(os.environ))
    if code is None:
        return GO_ON
    print(code)
    return 0


def _check(run: RunDir, start: JobStart) -> int | None:
    try:
        start = of_its_line(run, start)
        leave = retry_storage(lambda: why_leave(run, start), pauses_s=_PAUSES_S)
    except (OSError, MgptError):
        return None  # the next reader of the folder reports what is wrong with it
    if leave is None:
        return None
    code, reason = leave
    print(f"this start ends at once: {reason.strip()}", flush=True)
    if code == 0:
        end_finished(start, run.path.parent)
    else:
        end_unfinished(start)
    return code


if __name__ == "__main__":
    sys.exit(main())

"""``python -m mgpt4_hpc.launch.task RUN_DIR``: a rank, under the name that stored runs call.

The batch script and the pickled job of a run name this module. They may be older than the code that
they meet, and ``mgpt4 resume`` renders them again for a code snapshot older than itself: the
name has to exist in both, so it stays. The code is in :mod:`mgpt4_hpc.launch.job.rank`.
"""

from __future__ import annotations

import sys

from submitit.helpers import DelayedSubmission

from mgpt4_hpc.launch.job.rank import run_task


class StageTask:
    """The callable that submitit pickles. It holds a path and nothing else.

    The process that unpickles it reads what to do from the run directory.
    """

    def __init__(self, run_dir: str) -> None:
        self.run_dir = run_dir

    def __call__(self) -> int:
        """Run this rank; the value 0 means that the run is finished, all else leaves by exit."""
        return run_task(self.run_dir)

    def checkpoint(self) -> DelayedSubmission:
        """Submitit's own requeueing, should its handler ever run: the same task, state-free."""
        return DelayedSubmission(StageTask(self.run_dir))


if __name__ == "__main__":
    StageTask(sys.argv[1])()

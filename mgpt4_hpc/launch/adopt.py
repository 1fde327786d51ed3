"""``python -m mgpt4_hpc.launch.adopt``: makes a run in a job, under the name that scripts call.

Copies of ``slurm/stage*.sbatch`` in users' hands call it, so it stays. The code is in
:mod:`mgpt4_hpc.launch.submit.from_batch_script`.
"""

from __future__ import annotations

from mgpt4_hpc.launch.submit.from_batch_script import command
from mgpt4_hpc.train.entry import run_command

if __name__ == "__main__":
    run_command(command)

"""The training loop: its step, state, schedule and saving, and the run that composes them.

Its inputs, health checks, validation and stopping have folders. Knows no Slurm.
"""

# Before the first import of torch, which it makes cheaper on shared storage.
from mgpt4_hpc import frame_modules  # noqa: F401

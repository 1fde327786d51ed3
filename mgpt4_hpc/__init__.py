"""mgpt4-hpc: MiniGPT-4's two alignment stages on Slurm, safe from preemption."""

from mgpt4_hpc import frame_modules  # noqa: F401 - makes imports of torch cheaper on shared storage

__version__ = "0.1.0"

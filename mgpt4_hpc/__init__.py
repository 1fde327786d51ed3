"""mgpt4-hpc: MiniGPT-4's two alignment stages on Slurm, safe from preemption."""

__version__ = "0.1.0"

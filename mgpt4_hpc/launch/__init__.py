"""Everything that knows Slurm: plans, sbatch text, executors, the task, the decision at its end."""

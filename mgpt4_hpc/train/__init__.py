"""The training loop: its step, state, schedule and saving, and the run that composes them.

Its inputs, health checks, validation and stopping have folders. Knows no Slurm.
"""

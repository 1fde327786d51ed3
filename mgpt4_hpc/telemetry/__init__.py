"""What a run records and what is read from it: curves, ledger, usage, reports. Floats only.

Knows no tensors and no Slurm. What a run is doing at the moment is in ``launch.runs``.
"""

"""Whether nodes, ranks and the loss are fit: node check, consensus, watchdog.

What a job does about an unfit node is in ``launch.job``.
"""

"""On the login node: from a command line to a submitted job.

What the job then does is in ``job``.
"""

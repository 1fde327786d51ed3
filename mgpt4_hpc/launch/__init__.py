"""Everything that knows Slurm: submission, the job, steering and watching runs, site checks.

Here stand only the entry points whose names stored runs call; :mod:`.task` says why. New code goes
into a folder.
"""

"""Everything that knows Slurm: submission, the job, steering and watching runs, site checks.

Here stand only the entry points that stored runs call by name; :mod:`.task` says why. New code goes
into a folder.
"""

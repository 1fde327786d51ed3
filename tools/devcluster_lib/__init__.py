"""The parts of ``tools/devcluster``: a real Slurm on one machine, for development and tests.

Standard library only: the tool has to run before any virtual environment exists.

errors    DevclusterError, which carries what is wrong and the fix
packages  Debian's packages: which are missing, installing them
layout    where things lie inside a cluster's folder, its options, its saved state
releases  Slurm's releases: which are here, unpacking one that the machine does not have
conf      the text of slurm.conf, gres.conf and slurmdbd.conf
processes starting, recognising and ending processes, and only our own
services  one function per daemon: start it and wait until it serves
cluster   up, down, status, nodes down and up, restarting the controller

Each imports only from the ones above it.
"""

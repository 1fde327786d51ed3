"""Steering runs that exist: cancel, resume, remove, and the jobs that depend on them.

New runs are in ``submit``; what a job does by itself is in ``job``.
"""

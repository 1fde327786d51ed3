"""Steering runs that exist: cancel, resume, remove, and the jobs that depend on them."""

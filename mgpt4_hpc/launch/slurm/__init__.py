"""Talks to Slurm; the only package that parses the answers of its commands."""

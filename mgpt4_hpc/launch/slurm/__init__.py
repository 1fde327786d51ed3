"""Talks to Slurm: the only package that runs its commands and parses their answers.

Other packages use ``scheduler.py`` for jobs.
"""

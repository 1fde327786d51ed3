"""Checks of a site: ``doctor`` asks, ``drill`` preempts a small run, ``demo`` trains in short.

Checks of a run before its submission are in ``submit``, of a node before training in ``train``.
"""

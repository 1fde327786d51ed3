"""Checks of a site: ``doctor`` asks, ``drill`` preempts a small run, ``demo`` trains in short."""

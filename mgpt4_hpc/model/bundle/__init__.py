"""A bundle, the folder with all weights of a model: fetch, write, open, export.

Builds no modules; those are in ``nn``.
"""

"""A trained model as a folder that transformers loads by itself, and back.

The projector as a file, for the original repository, is in ``bundle``.
"""

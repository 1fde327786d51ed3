"""Frozen towers, the projector between them, their weights, generation.

Here stand only the model's sizes and late imports. Training one is in ``train``.
"""

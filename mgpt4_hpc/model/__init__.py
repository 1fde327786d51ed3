"""Frozen towers, the projector between them, their weights, generation.

Here stand only the model's sizes, the towers' tensors and late imports. Training is in ``train``.
"""

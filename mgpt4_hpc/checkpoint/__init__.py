"""The commit protocol: a checkpoint exists only if its manifest does.

Knows tensors and plain dictionaries. What a training state consists of is in ``train``.
"""

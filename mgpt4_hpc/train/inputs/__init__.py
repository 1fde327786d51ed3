"""What a run is made from: weights, indexes, loaders, features, and the pins that hold them.

Workers and batches themselves are in ``data``.
"""

"""From a sample's place to its bytes: shards, their local copies, the feature cache.

Finding the place is in ``index``; decoding the bytes is in ``batching`` and ``images``.
"""

"""Where each sample lies in its shard: scanning tars, the index file, captions.

Reading a sample's bytes is in ``reading``.
"""

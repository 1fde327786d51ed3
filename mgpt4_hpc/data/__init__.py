"""Shards, index, sample order, reading, decoding and collating."""

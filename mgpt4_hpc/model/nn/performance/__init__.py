"""What makes the model faster or smaller and leaves its values alone.

Compilation, CUDA graphs, packing, activation checkpointing, sharding, one read per node.
"""

"""Shards, index, sample order, reading, decoding and batching.

Each step has its folder. What becomes of a batch is in ``train``; the language model's tokenizer is
in ``model.llm_files``.
"""

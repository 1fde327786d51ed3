"""A language model's folder in Hugging Face layout: its files, tensors, tokenizer, chat template.

The language model that trains is in ``nn/language.py``.
"""

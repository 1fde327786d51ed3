"""The model that answers: embedded prompts, sampling, decoding. Conversations are in ``chat``."""

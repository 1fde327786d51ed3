"""The model that answers: prompts as embeddings, sampling, decoding."""

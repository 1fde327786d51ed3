"""Frozen towers, the projector between them, their weights, generation."""

"""Validation during training: the loss on held-out samples, and answers to questions.

Scores of answers are in ``evaluation``.
"""

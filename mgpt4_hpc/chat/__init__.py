"""Conversations with a trained model, on a terminal and on a web page.

The model that answers is in ``model.generation``; the commands are in ``cli.model``.
"""

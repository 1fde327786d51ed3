"""The modules that train: image encoder, connector, language model, loss.

What changes speed or memory and no value is in ``performance``.
"""

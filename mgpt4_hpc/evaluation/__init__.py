"""What the answers of a trained model are worth: suites, captions, objects, intervals.

The model that answers is in ``model.generation``, answers during training in ``train.validation``.
"""

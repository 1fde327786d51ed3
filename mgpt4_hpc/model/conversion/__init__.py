"""From published weights (the original's files, BLIP-2, Vicuna's delta) to a model's parts.

Writing the result into a bundle is in ``bundle``.
"""

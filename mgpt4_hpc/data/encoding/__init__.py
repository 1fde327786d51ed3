"""What to encode for the feature cache, and the images for it. Its files are in ``reading``."""

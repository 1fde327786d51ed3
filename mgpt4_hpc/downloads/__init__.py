"""Files of the hub or behind URLs, into a folder; programs of PyPI in their own environments."""

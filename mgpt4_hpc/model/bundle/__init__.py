"""Weight files: formats, import, export, checks. Builds no modules; those are in ``nn``."""

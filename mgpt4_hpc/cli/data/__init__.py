"""``mgpt4 data`` and its subcommands. What they do is in ``data``."""

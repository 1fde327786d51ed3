"""The commit protocol: a checkpoint exists only if its manifest does."""

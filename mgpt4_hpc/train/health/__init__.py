"""Whether nodes, ranks and the loss are fit: node check, consensus, watchdog."""

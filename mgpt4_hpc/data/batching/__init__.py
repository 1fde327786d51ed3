"""From samples to batches, in worker processes. Which sample comes next is in ``sampling``."""

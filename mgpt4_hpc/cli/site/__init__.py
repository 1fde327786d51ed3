"""Commands on this machine, its cluster and its settings; none works on a user's run."""

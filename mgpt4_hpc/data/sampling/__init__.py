"""Which sample comes when: a pure function of seed, sources and position. Reads no bytes."""

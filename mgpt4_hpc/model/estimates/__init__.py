"""Memory and operations of a model, computed from sizes. Loads no weights."""

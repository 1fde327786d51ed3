"""Jobs that do not train: arrays over data, TensorBoard."""

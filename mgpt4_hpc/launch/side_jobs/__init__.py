"""Jobs that do not train: arrays over data, srun sessions, TensorBoard."""

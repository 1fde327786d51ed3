"""Jobs that do not train: arrays over data, TensorBoard. How an array's part ends is in ``job``."""

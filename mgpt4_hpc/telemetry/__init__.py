"""TensorBoard, the run's ledger, meters. Floats only."""

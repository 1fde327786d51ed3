"""What a run is doing, seen from outside. Reads run folders and the queue, changes neither."""

"""What a run is made from: weights, indexes, loaders, features, and the pins that hold them."""

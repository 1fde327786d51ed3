"""What the answers of a trained model are worth."""

"""State space models and other recurrences and long convolutions."""

"""A simulated marketplace whose true click probabilities are known."""

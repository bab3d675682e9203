"""The layers that the networks are composed of."""

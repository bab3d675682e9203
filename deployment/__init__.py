"""Serving and shipping: the BentoML service and the scorer behind it."""

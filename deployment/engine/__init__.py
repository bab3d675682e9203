"""From a request to scores."""

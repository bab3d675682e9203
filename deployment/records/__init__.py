"""What the service writes down: predictions and metrics."""

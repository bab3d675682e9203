"""Reading events back: histories, splits, readiness."""

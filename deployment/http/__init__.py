"""The prediction service's HTTP face."""

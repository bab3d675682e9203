"""Every rival that the papers name, behind the same batch and the same training loop."""

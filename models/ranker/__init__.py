"""The shared network, its per-domain adapters, and how both are stored."""

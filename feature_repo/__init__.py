"""Feast: one definitions file, one writer, one read plan."""

"""Metrics with intervals, the gate, and the report."""

"""What the process counts for /metrics, beside what BentoML counts of HTTP."""

from __future__ import annotations

from functools import cache
from typing import Any


class Metrics:
    """Counters of one process; over several workers they add up."""

    def __init__(self) -> None:
        self._answers, self._faults, self._generation, self._lost = _collectors()

    def answered(self, domain: str, served_by: str, reason: str | None) -> None:
        """Count an answer by its fallback level."""
        self._answers.labels(domain, served_by, reason or "").inc()

    def swapped(self, generation: int, faults: int) -> None:
        """Say what is loaded, and how many domains go on with an older version because the newer does not load."""
        self._generation.set(generation)
        self._faults.set(faults)

    def lost(self, records: int) -> None:
        """Say how many predictions and pushes could not be kept so far."""
        self._lost.set(records)


@cache
def _collectors() -> tuple[Any, Any, Any, Any]:
    # Not at the top: a worker tells prometheus_client where its files lie only after this module is imported.
    from prometheus_client import Counter, Gauge

    return (
        Counter("graft_answers", "Rank answers by fallback level", ["domain", "served_by", "reason"]),
        Gauge("graft_version_faults", "Domains whose live version does not load", multiprocess_mode="max"),
        Gauge("graft_generation", "Registry generation that is loaded", multiprocess_mode="min"),
        Gauge("graft_lost_records", "Predictions and pushes not kept", multiprocess_mode="sum"),
    )

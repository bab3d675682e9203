"""What a process counts, and /metrics.

No label is what a caller wrote: paths are those of the routes, domains those of the registry. One worker counts in its
own memory. Several count in files mapped into memory, to be added up by whichever is asked: these lie in memory too
(``/dev/shm``) and are filled at once, for a write to a mapped file without room behind it kills the process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import psutil

SHARED_MEMORY = Path("/dev/shm")
NEEDED_BYTES = 64 * 1024 * 1024
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


class Metrics:
    """Counters of one process; over several workers they add up."""

    def __init__(self) -> None:
        collectors = _collectors()
        self._answers, self._faults = collectors["answers"], collectors["faults"]
        self._generation, self._lost = collectors["generation"], collectors["lost"]
        self._waiting, self._waited = collectors["waiting"], collectors["waited"]

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

    def outbox(self, events: int, oldest_s: float) -> None:
        """Say how much feedback waits for the online store, and for how long."""
        self._waiting.set(events)
        self._waited.set(oldest_s)

    @staticmethod
    def requested(path: str, method: str, status: int, seconds: float) -> None:
        """Count a request by the template of its path; status 0 is one that the caller did not wait for."""
        collectors = _collectors()
        collectors["requests"].labels(path, method, status).inc()
        collectors["seconds"].labels(path).observe(seconds)


def place(service: str, *, workers: int) -> None:
    """Choose where this process counts, before anything counts.

    Args:
        service: names the service on this machine, the same for all its workers.
    """
    os.environ.pop(_FOLDER, None)
    if workers == 1 or not SHARED_MEMORY.is_dir() or shutil.disk_usage(SHARED_MEMORY).free < NEEDED_BYTES:
        return  # without shared memory each worker counts for itself: /metrics is then one worker's
    folder = SHARED_MEMORY / f"graft-{os.getuid()}-{service}"
    folder.mkdir(mode=0o700, exist_ok=True)
    for file in folder.glob("*_*.db"):
        pid = file.stem.rpartition("_")[2]
        if not pid.isdigit() or not psutil.pid_exists(int(pid)):
            file.unlink(missing_ok=True)
    os.environ[_FOLDER] = str(folder)


def reserve() -> None:
    """Fill this process's files, so that no later write can find shared memory full."""
    if _FOLDER in os.environ:
        for file in Path(os.environ[_FOLDER]).glob(f"*_{os.getpid()}.db"):
            with file.open("r+b") as held:
                os.posix_fallocate(held.fileno(), 0, file.stat().st_size)


def release() -> None:
    """Remove this process's files; nothing counts here afterwards."""
    if _FOLDER in os.environ:
        folder = Path(os.environ[_FOLDER])
        for file in folder.glob(f"*_{os.getpid()}.db"):
            file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # other workers count on
            folder.rmdir()


def exposition(domains: Collection[str]) -> tuple[bytes, str]:
    """All counts in Prometheus's text format, and its content type.

    Args:
        domains: that answer now; what was counted for others, such as retired ones, is left out.
    """
    from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
    from prometheus_client.multiprocess import MultiProcessCollector

    _collectors()
    counted = REGISTRY
    if _FOLDER in os.environ:
        counted = CollectorRegistry()
        MultiProcessCollector(counted)
    shown = CollectorRegistry()
    shown.register(_Known(counted, frozenset(domains)))
    return generate_latest(shown), CONTENT_TYPE_LATEST


class _Known:
    """What a registry of Prometheus's holds, without domains that answer no more."""

    def __init__(self, counted: Any, domains: frozenset[str]) -> None:
        self._counted, self._domains = counted, domains

    def describe(self) -> list[Any]:
        return []

    def collect(self) -> Iterator[Any]:
        for family in self._counted.collect():
            family.samples = [one for one in family.samples if one.labels.get("domain") in {None, *self._domains}]
            yield family


@cache
def _collectors() -> dict[str, Any]:
    # Not at the top: prometheus_client asks where its files lie when it is imported, and `place` says so only then.
    from prometheus_client import Counter, Gauge, Histogram

    return {
        "requests": Counter("graft_requests", "Requests by path and status", ["path", "method", "status"]),
        "seconds": Histogram(
            "graft_request_seconds", "From the head of a request to its answer", ["path"], buckets=_BUCKETS
        ),
        "answers": Counter("graft_answers", "Rank answers by fallback level", ["domain", "served_by", "reason"]),
        "faults": Gauge("graft_version_faults", "Domains whose live version does not load", multiprocess_mode="max"),
        "generation": Gauge("graft_generation", "Registry generation that is loaded", multiprocess_mode="min"),
        "waiting": Gauge(
            "graft_outbox_events", "Feedback that waits for the online store", multiprocess_mode="mostrecent"
        ),
        "waited": Gauge(
            "graft_outbox_oldest_seconds", "How long the oldest feedback has waited", multiprocess_mode="mostrecent"
        ),
        "lost": Gauge("graft_lost_records", "Predictions and pushes not kept", multiprocess_mode="sum"),
    }

"""The Prefect server and the registry are taken away while callers ask, and given back."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from benchmarks.chaos.load import Load, Log
from benchmarks.chaos.rows import Measured, Row
from benchmarks.chaos.stack import TARGET, Stack, wait_for
from domains.registry.registry import Registry
from orchestrator import use_cases
from orchestrator.jobs import backup
from orchestrator.servers import overview

PER_S = 12.0
QUIET_S = 12.0
"""How long the callers are measured before anything is taken away."""
FROZEN_S = 12.0
LOCKED_S = 45.0
REFUSED_S = 2.0
"""Feedback that cannot be written is turned away within this time."""
RUN_S = 60.0
"""A run that was starting when the Prefect server died has this long to get going after the last outage."""


def prefect(stack: Stack, seconds: float) -> Measured:
    """Kill the Prefect server while a run is starting, freeze the next one, thaw it."""
    said: dict[str, str] = {}
    known: dict[str, Any] = {"registry": stack.registry, "settings": stack.settings, "by": "chaos"}
    with Load(stack, per_s=PER_S) as log:
        quiet_ms = _quiet(log)
        run = use_cases.start("preview", TARGET, params={"epochs": 1}, **known)
        time.sleep(2)
        began = time.monotonic()
        victim = stack.server("prefect")
        assert victim is not None, "a Prefect server runs"
        victim.kill()
        said["killed"] = _wrong(stack, "Prefect")
        time.sleep(seconds / 2)
        stack.settle()
        frozen = stack.server("prefect")
        assert frozen is not None, "it was started again"
        with _stopped(frozen):
            time.sleep(FROZEN_S / 2)
            said["frozen"] = _wrong(stack, "Prefect")
            time.sleep(FROZEN_S / 2)
        stack.settle()
        outage = (began, time.monotonic())
    with contextlib.suppress(TimeoutError):
        wait_for(lambda: stack.registry.run(run.id).progress > 0, RUN_S, "progress of the run")
    now = stack.registry.run(run.id)
    goes_on = now.state == "succeeded" or (now.state == "running" and now.progress > 0)
    worst_ms, failed = log.took_ms_between(99, *outage), len(log.failed)
    return Measured(
        f"rank p99 {quiet_ms:.0f} ms quiet, {worst_ms:.0f} ms meanwhile, {failed} failed; status says "
        f"{sum(map(bool, said.values()))} of {len(said)}; the run is {now.state}, {now.progress:.0%} done",
        worst_ms <= 2 * quiet_ms and not failed and all(said.values()) and goes_on,
        {"quiet_p99_ms": quiet_ms, "p99_ms": worst_ms, "said": said, "run": now.state, "failed": log.failed},
    )


def registry(stack: Stack, seconds: float) -> Measured:
    """Lock SQLite's file, let it go, then restore a backup into it; all under load."""
    said: dict[str, str] = {}
    with Load(stack, per_s=PER_S) as log:
        quiet_ms = _quiet(log)
        began = time.monotonic()
        with closing(sqlite3.connect(stack.settings.home / "registry.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            time.sleep(min(seconds, LOCKED_S) / 2)
            said["locked"] = _wrong(stack, "registry")
            time.sleep(max(0.0, min(seconds, LOCKED_S) - (time.monotonic() - began)))
            other.execute("ROLLBACK")
        unlocked = time.monotonic()
        time.sleep(3)
        copy = stack.folder / f"backup-{time.time_ns()}"
        backup.back_up(copy, settings=stack.settings)
        backup.restore(copy, settings=stack.settings, replace=True)
        restored = time.monotonic()
        time.sleep(5)
    wait_for(lambda: not stack.registry.unpushed(), 60, "empty outbox")
    worst_ms = log.took_ms_between(99, began, unlocked)
    failed = [how for _, how in log.failed if how.endswith("of rank")]
    slow_s = max((took for at, took in log.refused if began <= at <= unlocked), default=0.0)
    # What came between the copy and its return is meant to be gone.
    lost = _lost(stack.registry, log, before=began, after=restored)
    return Measured(
        f"rank p99 {quiet_ms:.0f} ms quiet, {worst_ms:.0f} ms while locked, {len(failed)} failed; feedback refused in "
        f"{slow_s:.1f} s at most; status says {sum(map(bool, said.values()))} of {len(said)}; {lost} of the feedback "
        "before the lock and after the restore lost",
        worst_ms <= 2 * quiet_ms and not failed and all(said.values()) and slow_s < REFUSED_S and not lost,
        {"quiet_p99_ms": quiet_ms, "p99_ms": worst_ms, "said": said, "lost": lost, "failed": log.failed},
    )


def _quiet(log: Log) -> float:
    """The p99 of the callers before anything happens, in ms."""
    began = time.monotonic()
    time.sleep(QUIET_S)
    return log.took_ms_between(99, began, time.monotonic())


def _wrong(stack: Stack, name: str) -> str:
    """What `graft status` says of a part that is not well; empty where it takes it for well."""
    found = [part for part in overview.overview(stack.settings) if part.name == name and not part.well]
    return found[0].says if found else ""


@contextmanager
def _stopped(process: Any) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def _lost(kept: Registry, log: Log, *, before: float, after: float) -> int:
    """Acknowledged feedback of before the one moment and after the other that the registry does not hold."""
    held: set[tuple[str, str]] = set()
    last = 0
    while page := kept.feedback(TARGET, last):
        held |= {(row["request_id"], row["item_id"]) for row in page}
        last = page[-1]["id"]
    told = [one for one in log.told if one.at < before or one.asked_at > after]
    return sum((one.request_id, one.item_id) not in held for one in told)


ROWS = (
    Row(
        "registry",
        "SQLite locked 45 s, a backup restored: rank p99 at most twice the quiet one, feedback refused in 2 s, 0 lost",
        45,
        registry,
    ),
    Row(
        "prefect",
        "Prefect killed and frozen: rank p99 at most twice the quiet one, said in status, no run fails for good",
        30,
        prefect,
    ),
)

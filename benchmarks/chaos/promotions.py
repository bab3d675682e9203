"""A version is set live every two seconds while callers ask."""

from __future__ import annotations

import contextlib
import itertools
import time

import psutil

from benchmarks.chaos.load import Load
from benchmarks.chaos.rows import Measured, Row
from benchmarks.chaos.stack import Stack

EVERY_S = 2.0
GROWTH_ALLOWED = 8
"""Open files more at the end than a quarter into it: what connections come and go."""


def promotions(stack: Stack, seconds: float) -> Measured:
    """Two versions take turns; counts failed requests, answers of unknown versions, and the service's open files."""
    known, files = set(stack.versions()), []
    with Load(stack, per_s=12) as log:
        until = time.monotonic() + seconds
        for version in itertools.cycle(sorted(known)):
            if time.monotonic() > until:
                break
            stack.set_live(version)
            files.append(open_files(stack.scorers()))
            time.sleep(EVERY_S)
    wrong = sum(version not in known for _, version in log.versions)
    grown = files[-1] - files[len(files) // 4]
    return Measured(
        f"{len(files)} promotions, {len(log.answers)} answers, {len(log.failed)} failed, {wrong} of another version; "
        f"open files {files[0]} to {files[-1]}",
        not log.failed and not wrong and grown <= GROWTH_ALLOWED,
        {"open_files": files, "failed": log.failed, "wrong": wrong, "p99_ms": log.took_ms(99)},
    )


def open_files(processes: list[psutil.Process]) -> int:
    """Descriptors that these processes hold."""
    held = 0
    for process in processes:
        with contextlib.suppress(psutil.Error):
            held += process.num_fds()
    return held


ROWS = (Row("promotions", "a promotion every 2 s under load: 0 failed, open files flat", 60, promotions),)

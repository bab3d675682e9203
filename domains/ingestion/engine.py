"""DuckDB as a part of a program that people stop, on disks that fill up."""

from __future__ import annotations

import errno
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from domains.ingestion.source_files import engine_reason

_STOPPING = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def engine_faults(folder: Path) -> Iterator[None]:
    """Say of the engine's trouble with disk and memory where it was met, and of Ctrl-C, as the system says it.

    Raises:
        OSError: the disk is full, the folder cannot be written, or the memory does not suffice.
        KeyboardInterrupt: a query was interrupted.
    """
    try:
        yield
    except (duckdb.InterruptException, RuntimeError) as fault:
        if not isinstance(fault, duckdb.InterruptException) and str(fault) != "Query interrupted":
            raise
        raise KeyboardInterrupt from fault
    except (duckdb.IOException, duckdb.OutOfMemoryException) as fault:
        number = errno.ENOMEM if isinstance(fault, duckdb.OutOfMemoryException) else errno.EIO
        raise OSError(number, engine_reason(folder, fault), str(folder)) from fault


@contextmanager
def interruptible(con: duckdb.DuckDBPyConnection) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end a query at once, where this is the main thread.

    Python heeds a signal between two steps of its main thread, and a query is one step, however long it takes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    before = signal.set_wakeup_fd(theirs, warn_on_full_buffer=False)

    def watch() -> None:
        while number := os.read(ours, 1):
            if number[0] in _STOPPING:
                con.interrupt()

    watcher = threading.Thread(target=watch, daemon=True, name="interrupts")
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(theirs)
        watcher.join()
        os.close(ours)

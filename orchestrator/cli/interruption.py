"""Ctrl-C and SIGTERM: the work puts away what it began, the command says one line and ends with its status."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Signals that end a command, and the exit status of each."""
LINE = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM"}

_met: list[signal.Signals] = []


def end_at_once_while_loading() -> None:
    """Until a command heeds signals itself, end by them with a line: loading takes seconds and begins nothing.

    Only where this process is ``graft``; whoever imports the command line has ways of their own.
    """
    if Path(sys.argv[0]).name in ("graft", "-m") and threading.current_thread() is threading.main_thread():
        for number in STATUS:
            signal.signal(number, _end_at_once)


def met() -> signal.Signals | None:
    """The signal that asked the command to end, while ``heeded`` holds; libraries turn what it raises into errors."""
    return _met[0] if _met else None


@contextmanager
def heeded() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` in the main thread for each of the signals, so that the work can clean up."""
    _met.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, _interrupt) for number in STATUS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _frame: Any) -> None:
    _met.append(signal.Signals(number))
    raise KeyboardInterrupt


def _end_at_once(number: int, _frame: Any) -> None:
    os.write(2, f"{LINE[signal.Signals(number)]}\n".encode())
    os._exit(STATUS[signal.Signals(number)])

"""Batches made ahead of the step that needs them, in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.1


@dataclass(frozen=True)
class _End:
    """There are no more items: all have come, or making the next one raised ``error``."""

    error: BaseException | None


def prefetched(items: Iterator[T], ahead: int) -> Iterator[T]:
    """The same items in the same order, up to ``ahead`` of them made before they are asked for; 0 uses no thread.

    What the source raises is raised here, at its place. Abandoning the iterator ends the thread.
    """
    if ahead < 1:
        yield from items
        return
    ready: queue.Queue[T | _End] = queue.Queue(ahead)
    abandoned = threading.Event()
    maker = threading.Thread(target=_make, args=(items, ready, abandoned), name="batches-ahead", daemon=True)
    maker.start()
    try:
        while not isinstance(made := ready.get(), _End):
            yield made
        if made.error is not None:
            raise made.error
    finally:
        abandoned.set()
        maker.join()


def _make(items: Iterator[T], ready: queue.Queue[T | _End], abandoned: threading.Event) -> None:
    error = None
    try:
        for item in items:
            if not _put(item, ready, abandoned):
                return
    except BaseException as raised:
        error = raised
    _put(_End(error), ready, abandoned)


def _put(made: T | _End, ready: queue.Queue[T | _End], abandoned: threading.Event) -> bool:
    """Whether it was taken; not once nobody asks any more."""
    while not abandoned.is_set():
        try:
            ready.put(made, timeout=_POLL_SECONDS)
            return True
        except queue.Full:
            continue
    return False

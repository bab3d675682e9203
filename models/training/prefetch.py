"""Batches made ahead of the step that needs them, in a thread of its own."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")

_POLL_SECONDS = 0.1


def prefetched(items: Iterator[T], ahead: int) -> Iterator[T]:
    """The same items in the same order, up to ``ahead`` of them made before they are asked for; 0 uses no thread.

    What the source raises is raised here, at its place. Abandoning the iterator ends the thread.
    """
    if ahead < 1:
        yield from items
        return
    ready: queue.Queue[tuple[str, T | BaseException | None]] = queue.Queue(ahead)
    abandoned = threading.Event()

    def offer(kind: str, value: T | BaseException | None) -> bool:
        while not abandoned.is_set():
            try:
                ready.put((kind, value), timeout=_POLL_SECONDS)
                return True
            except queue.Full:
                continue
        return False

    def make() -> None:
        try:
            for item in items:
                if not offer("item", item):
                    return
            offer("end", None)
        except BaseException as error:
            offer("error", error)

    maker = threading.Thread(target=make, name="batches-ahead", daemon=True)
    maker.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                assert isinstance(value, BaseException)
                raise value
            yield value  # type: ignore[misc]
    finally:
        abandoned.set()
        maker.join()

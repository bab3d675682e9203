"""Work that no request waits for: predictions written down, feedback pushed online. Bounded in memory."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")
_LONGEST_PAUSE_S = 2.0


class Background(Generic[T]):
    """A bounded queue with one thread that hands its content on in batches.

    No request waits for its own record. While whoever takes the batches is away, they wait here, and what finds no room
    any more is lost; so is a batch that fails twice for another reason. Both are counted.

    Args:
        handle: takes a batch, oldest first.
        away: the exceptions that say that it cannot take anything now.
        linger_s: how long a batch waits for more entries.
    """

    def __init__(
        self,
        name: str,
        handle: Callable[[Sequence[T]], Any],
        *,
        away: tuple[type[Exception], ...] = (),
        capacity: int = 20_000,
        batch: int = 500,
        linger_s: float = 0.2,
    ) -> None:
        self._name = name
        self._handle = handle
        self._away = away
        self._queue: queue.Queue[T] = queue.Queue(maxsize=capacity)
        self._batch = batch
        self._linger_s = linger_s
        self._closing = threading.Event()
        self._lost = 0
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def lost(self) -> int:
        """Entries that could not be kept since the process started."""
        return self._lost

    def put(self, entry: T) -> bool:
        """Take an entry; False when there was no room for it."""
        try:
            self._queue.put_nowait(entry)
        except queue.Full:
            self._lose(1, "queue full")
            return False
        return True

    def close(self, timeout_s: float = 5.0) -> None:
        """Hand on what is waiting, then stop."""
        self._closing.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not (self._closing.is_set() and self._queue.empty()):
            try:
                held = [self._queue.get(timeout=0.2)]
            except queue.Empty:
                continue
            until = time.monotonic() + self._linger_s
            while len(held) < self._batch:
                wait = 0.0 if self._closing.is_set() else until - time.monotonic()
                try:
                    held.append(self._queue.get(timeout=wait) if wait > 0 else self._queue.get_nowait())
                except queue.Empty:
                    break
            self._hand_on(held)

    def _hand_on(self, held: Sequence[T]) -> None:
        attempt = 0
        while True:
            attempt += 1
            try:
                self._handle(held)
                return
            except Exception as error:
                waits = isinstance(error, self._away) and not self._closing.is_set()
                if attempt > 1 and not waits:
                    self._lose(len(held), f"{type(error).__name__}: {error}")
                    return
            self._closing.wait(min(_LONGEST_PAUSE_S, 0.25 * 2**attempt))

    def _lose(self, count: int, reason: str) -> None:
        with self._lock:
            first = self._lost == 0
            self._lost += count
        # Once per process here, ever after in the metrics: an overloaded service must not drown in its own log.
        if first:
            logger.warning("entries lost", extra={"queue": self._name, "count": count, "reason": reason})

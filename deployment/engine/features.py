"""Users' features as requests wait for them: not for long, and not at all while the store is known to be away.

Reads have a thread of their own, so that a store that hangs holds neither the scoring thread nor the event loop. The
first read that is late or fails opens the breaker: from then on requests are answered without features at once, and the
thread alone asks the store again, after pauses that grow, until it answers in time.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from feature_repo.online import FeatureStoreDown, UserFeatures

logger = logging.getLogger(__name__)

SHORTEST_LIMIT_S, LONGEST_LIMIT_S = 0.05, 0.5
"""How long a request waits for its user's features: some times what the slowest of the latest took, in these bounds."""
_TIMES_SLOWEST = 4.0
_FORGOTTEN = 0.98
"""What is left of the slowest read with each one after it."""
FIRST_REST_S = 0.05
"""Pause before the store is asked again; it doubles with each attempt in vain."""
LONGEST_REST_S = 5.0
"""The longest such pause, and so how long a store may be back before it is noticed."""
FORGIVEN_AFTER_S = 30.0
"""A store that has answered for so long begins with the first pause again."""

Read = Callable[[str, str], UserFeatures | None]


class FeatureReads:
    """One thread that reads, and the breaker in front of it.

    Args:
        read: what it reads with: a user's features in a domain, or FeatureStoreDown.
    """

    def __init__(self, read: Read) -> None:
        self._read = read
        # The first reads are the slowest, and nothing is known of the machine yet.
        self._slowest_s = LONGEST_LIMIT_S / _TIMES_SLOWEST
        self._rest_s = FIRST_REST_S
        self._healed_at = -FORGIVEN_AFTER_S
        self._fault: str | None = None
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="features")

    @property
    def limit_s(self) -> float:
        """How long a request waits now; a busy machine or a far store is no store that is away."""
        return min(max(SHORTEST_LIMIT_S, _TIMES_SLOWEST * self._slowest_s), LONGEST_LIMIT_S)

    @property
    def fault(self) -> str | None:
        """Why requests are answered without features now; None while the store answers."""
        return self._fault

    def close(self) -> None:
        """Read no more."""
        self._closing.set()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def user(self, user_id: str, domain: str) -> UserFeatures | None:
        """A user's features in a domain; None for a user nobody has seen.

        Raises:
            FeatureStoreDown: the store does not answer, or not in time, or did not a moment ago.
        """
        if self._fault is not None:
            raise FeatureStoreDown(self._fault)
        began, limit_s = time.monotonic(), self.limit_s
        reading = asyncio.get_running_loop().run_in_executor(self._thread, self._attempt, user_id, domain)
        try:
            user = await asyncio.wait_for(reading, limit_s)
        except TimeoutError:
            reason = f"no answer within {limit_s * 1e3:.0f} ms"
            self._open(reason, user_id, domain)
            raise FeatureStoreDown(reason) from None
        self._slowest_s = max(time.monotonic() - began, _FORGOTTEN * self._slowest_s)
        return user

    def user_now(self, user_id: str, domain: str) -> UserFeatures | None:
        """The same, for a caller that can wait: it begins the thread's work and opens the breaker as well.

        Raises:
            FeatureStoreDown: the store does not answer.
        """
        try:
            return self._thread.submit(self._attempt, user_id, domain).result(timeout=LONGEST_REST_S)
        except TimeoutError:
            reason = f"no answer within {LONGEST_REST_S:.0f} s"
            self._open(reason, user_id, domain)
            raise FeatureStoreDown(reason) from None

    def _attempt(self, user_id: str, domain: str) -> UserFeatures | None:
        # Those who queued behind a read that failed must not each find out for themselves.
        if self._fault is not None:
            raise FeatureStoreDown(self._fault)
        try:
            return self._read(user_id, domain)
        except FeatureStoreDown as error:
            self._open(str(error), user_id, domain)
            raise

    def _open(self, reason: str, user_id: str, domain: str) -> None:
        with self._lock:
            if self._fault is not None or self._closing.is_set():
                return
            self._fault = reason
        logger.warning("feature store down", extra={"reason": reason})
        if time.monotonic() - self._healed_at > FORGIVEN_AFTER_S:
            self._rest_s = FIRST_REST_S
        self._thread.submit(self._heal, user_id, domain)

    def _heal(self, user_id: str, domain: str) -> None:
        """Repeat the read that failed until it comes in time."""
        began_at = time.monotonic()
        while not self._closing.wait(self._rest_s):
            self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)
            began = time.monotonic()
            try:
                self._read(user_id, domain)
            except FeatureStoreDown as error:
                self._fault = str(error)
                continue
            took_s = time.monotonic() - began
            if took_s > self.limit_s:
                self._fault = f"answers after {took_s * 1e3:.0f} ms only"
                continue
            self._healed_at = time.monotonic()
            self._fault = None
            logger.info("feature store up", extra={"after_s": round(self._healed_at - began_at, 3)})
            return

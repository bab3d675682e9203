"""The outbox emptied: what feedback was acknowledged reaches the users' online histories, after any death too."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from deployment.engine.scorer import LiveDomain
from domains.events.histories import action_code
from domains.registry.outbox import Waiting
from domains.registry.registry import Registry
from feature_repo.definitions import FeatureRepo
from feature_repo.materialise import Push, push_events
from feature_repo.online import PushedEvent

logger = logging.getLogger(__name__)

BATCH = 500
CLAIM_S = 30.0
"""How long a batch belongs to one process; where that died, another takes it up afterwards."""
KEPT_FOR = timedelta(days=1)
"""How long an event waits for a domain that no process serves."""
_LONGEST_PAUSE_S = 10.0


class Pusher:
    """One thread that moves the outbox into the online store, batch by batch, whoever put the events there.

    Args:
        find_domain: the domain as this process answers for it now, or None.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        repo: FeatureRepo,
        find_domain: Callable[[str], LiveDomain | None],
        every_s: float = 0.5,
    ) -> None:
        self._registry = registry
        self._repo = repo
        self._find_domain = find_domain
        self._every_s = every_s
        self._store: Any = None
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._run, name="pushes", daemon=True)
        self.lost = 0
        """Events of domains that nobody serves any more."""

    def start(self) -> None:
        """Begin with what an earlier process left."""
        self._thread.start()

    def wake(self) -> None:
        """Look now: something was put into the outbox."""
        self._wake.set()

    def close(self, timeout_s: float = 5.0) -> None:
        """Push what is waiting, then stop; what does not fit into the time stays in the outbox."""
        self._closing.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        pause = self._every_s
        while True:
            closing = self._closing.is_set()
            try:
                more = self._turn()
                self._failing, pause = False, self._every_s
            except Exception as error:
                if not self._failing:
                    # Once an outage: the next attempts would only say the same.
                    logger.warning("pushes wait", extra={"reason": f"{type(error).__name__}: {error}"[:300]})
                self._failing, more, pause = True, False, min(2 * pause, _LONGEST_PAUSE_S)
            if more:
                continue
            if closing:
                return
            if self._failing:
                self._closing.wait(pause)
            else:
                self._wake.wait(pause)
            self._wake.clear()

    def _turn(self) -> bool:
        """Push one batch; False where nothing waits."""
        claimed = self._registry.claim_unpushed(BATCH, for_s=CLAIM_S)
        if not claimed:
            return False
        try:
            done = self._push(claimed)
        except Exception:
            # A new connection next time: this one may hold a store that went away.
            self._store = None
            self._registry.give_back_unpushed([event.id for event in claimed])
            raise
        if done:
            self._registry.forget_unpushed(done)
        # What stays belongs to a domain that this process does not know; its claim ends by itself.
        return bool(done)

    def _push(self, claimed: Sequence[Waiting]) -> list[int]:
        pushes, done = [], []
        for event in claimed:
            domain = self._find_domain(event.domain)
            if domain is not None:
                pushes.append(_as_push(domain, event))
                done.append(event.id)
            elif datetime.now(UTC) - event.at > KEPT_FOR:
                self.lost += 1
                done.append(event.id)
        if pushes:
            if self._store is None:
                self._store = self._repo.store()
            began = time.perf_counter()
            push_events(self._repo, self._store, pushes)
            logger.debug("pushed", extra={"events": len(pushes), "seconds": time.perf_counter() - began})
        return done


def _as_push(domain: LiveDomain, event: Waiting) -> Push:
    pushed = PushedEvent(
        user_id=event.user_id,
        item=domain.item_index.get(event.item_id, 0),
        domain=domain.number,
        action=action_code(event.action),
        value=1.0 if event.value is None else event.value,
        time_us=(event.at - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1),
    )
    return Push(pushed, target=domain.name if domain.role == "target" else None, may_displace=event.ranked)

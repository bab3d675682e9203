"""The outbox emptied: what feedback was acknowledged reaches the users' online histories, after any death too.

One process at a time writes histories, under the online store's own lock, and whoever has it takes the oldest of the
outbox: nothing is anybody's, so nothing waits for one that died. With each batch the store keeps a mark of how far it
got. A store that comes back with an older mark, or with none, lost what it was given since: that is pushed again from
the log of feedback. An event that a history holds already is not added twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from deployment.engine.scorer import LiveDomain
from domains.events.histories import action_code
from domains.registry.outbox import OutboxSize, Waiting
from domains.registry.registry import Registry
from feature_repo.definitions import FeatureRepo
from feature_repo.materialise import Push, add_events
from feature_repo.online import PushedEvent

logger = logging.getLogger(__name__)

BATCH = 500
GATHER_S = 0.1
"""A batch begins this long after the one before it, unless that one was full: each costs the same few writes."""
KEPT_FOR = timedelta(days=1)
"""How long an event waits for a domain that no process serves, and an id for the prediction that names it."""
PUSHED_AGAIN = 100_000
"""The latest feedback that a store without any mark is given again."""
_LONGEST_PAUSE_S = 2.0
_TIDY_EVERY_S = 600.0


class Pusher:
    """One thread that moves the outbox into the online store, batch by batch, whoever put the events there.

    Args:
        domains: the domains as this process answers for them now, by name.
        on_look: called with the size of the outbox, some times a second at most.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        repo: FeatureRepo,
        domains: Callable[[], Mapping[str, LiveDomain]],
        on_look: Callable[[OutboxSize], None] = lambda _: None,
        every_s: float = 0.5,
    ) -> None:
        self._registry = registry
        self._repo = repo
        self._domains = domains
        self._on_look = on_look
        self._every_s = every_s
        self._store: Any = None
        self._identity: object = None
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._failing = False
        self._tidy_at = 0.0
        self._thread = threading.Thread(target=self._run, name="pushes", daemon=True)
        self.size = OutboxSize(0, 0.0)
        """What waited when this process looked last."""
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
            closing, began = self._closing.is_set(), time.monotonic()
            try:
                self._look()
                more = self._turn()
                self._failing, pause = False, self._every_s
            except Exception as error:
                if not self._failing:
                    # Once an outage: the next attempts would only say the same.
                    logger.warning("pushes wait", extra={"reason": f"{type(error).__name__}: {error}"[:300]})
                # A new connection next time: this one may hold a store that went away.
                self._store = None
                self._failing, more, pause = True, False, min(2 * pause, _LONGEST_PAUSE_S)
            if more:
                continue
            if closing:
                return
            if self._failing:
                self._closing.wait(pause)
            else:
                self._wake.wait(pause)
                self._closing.wait(max(0.0, began + GATHER_S - time.monotonic()))
            self._wake.clear()

    def _look(self) -> None:
        self.size = self._registry.outbox_size()
        self._on_look(self.size)

    def _turn(self) -> bool:
        """Push one batch; whether there is more to push at once."""
        domains = self._domains()
        if not domains:
            return False
        self._forget_claims()
        if not self.size.events and not self._behind():
            return False
        with self._repo.online.writing() as marks:
            until, mark = self._registry.pushed_up_to(), marks.read()
            reached = until if mark is not None and mark >= until else self._push_again(domains, mark, until)
            waiting = self._registry.waiting(list(domains), BATCH)
            if waiting:
                self._push(domains, waiting)
                self._registry.forget_unpushed([event.id for event in waiting])
            self.lost += self._registry.forget_unserved(list(domains), datetime.now(UTC) - KEPT_FOR)
            # Only now: the mark must not come before what it speaks of.
            if reached == until:
                reached = self._registry.pushed_up_to()
            if reached != mark:
                marks.write(reached)
        return len(waiting) == BATCH or reached < until

    def _behind(self) -> bool:
        """Whether the store holds less than has left the outbox."""
        with self._repo.online.marks() as marks:
            return marks.read() != self._registry.pushed_up_to()

    def _push_again(self, domains: Mapping[str, LiveDomain], mark: int | None, until: int) -> int:
        """Push a batch of what the store lost; returns up to where it holds everything again."""
        after = max(0, until - PUSHED_AGAIN) if mark is None else mark
        kept = self._registry.kept_between(after, until, list(domains), BATCH)
        self._push(domains, kept)
        return kept[-1].id if len(kept) == BATCH else until

    def _push(self, domains: Mapping[str, LiveDomain], events: Sequence[Waiting]) -> None:
        if not events:
            return
        # A connection outlives its file: without this, events would go on into a store that was replaced.
        identity = self._repo.online.identity()
        if self._store is None or self._identity != identity:
            self._store, self._identity = self._repo.store(), identity
        began = time.perf_counter()
        add_events(self._store, [_as_push(domains[event.domain], event) for event in events])
        logger.debug("pushed", extra={"events": len(events), "seconds": time.perf_counter() - began})

    def _forget_claims(self) -> None:
        if time.monotonic() >= self._tidy_at:
            self._registry.forget_claims(datetime.now(UTC) - KEPT_FOR)
            self._tidy_at = time.monotonic() + _TIDY_EVERY_S


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

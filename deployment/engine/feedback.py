"""Feedback: kept in the registry first, then added to the user's online history."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from deployment.engine.scorer import LiveDomain
from deployment.messages import FeedbackAnswer, FeedbackEvent, FeedbackRequest
from deployment.records.journal import Background
from domains.events.histories import action_code
from domains.registry.registry import Registry
from feature_repo.definitions import FeatureRepo
from feature_repo.materialise import push_event
from feature_repo.online import PushedEvent

K = TypeVar("K")
V = TypeVar("V")

REMEMBERED_REQUESTS = 50_000
UNCLAIMED_S = 5.0
"""How long feedback waits for the record of the request that it answers, to reach the user's online history."""


@dataclass(frozen=True)
class _Push:
    request_id: str
    asked_by: tuple[str, str] | None
    """User and domain; None until the log of another worker shows who asked."""
    event: FeedbackEvent
    time_us: int
    since: float


class _Latest(Generic[K, V]):
    """The latest so many entries, from any thread."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, key: K, value: V) -> bool:
        """Hold an entry; False where the key was held already, and is now held anew."""
        with self._lock:
            new = key not in self._held
            self._held[key] = value
            self._held.move_to_end(key)
            if len(self._held) > self._most:
                self._held.popitem(last=False)
            return new

    def get(self, key: K) -> V | None:
        with self._lock:
            return self._held.get(key)


class Feedback:
    """Takes feedback of one process; a thread of its own pushes it to the online store.

    Args:
        find_domain: the domain as this process answers for it now, or None.
    """

    def __init__(
        self, *, registry: Registry, repo: FeatureRepo, find_domain: Callable[[str], LiveDomain | None]
    ) -> None:
        self._registry = registry
        self._repo = repo
        self._find_domain = find_domain
        self._asked: _Latest[str, tuple[str, str]] = _Latest(REMEMBERED_REQUESTS)
        self._pushed: _Latest[tuple[str, str, str], None] = _Latest(REMEMBERED_REQUESTS)
        self._pushes: Background[_Push] = Background("pushes", self._push, batch=50, linger_s=0.0)
        self._store: Any = None
        self._closing = False

    @property
    def lost(self) -> int:
        """Events that could not be pushed since the process started."""
        return self._pushes.lost

    def remember(self, request_id: str, *, user_id: str, domain: str) -> None:
        """Note who asked, and in which domain, for the feedback that answers."""
        self._asked.put(request_id, (user_id, domain))

    def asked_by(self, request: FeedbackRequest) -> tuple[str | None, str | None]:
        """User and domain of the ranking that feedback answers: those remembered here, else those that it names."""
        return self._asked.get(request.request_id) or (request.user_id, request.domain)

    def take(self, request: FeedbackRequest) -> FeedbackAnswer:
        """Keep feedback and queue what is new of it for the user's online history."""
        user_id, domain = self.asked_by(request)
        now_us = time.time_ns() // 1_000
        times = [now_us if event.time_us is None else event.time_us for event in request.events]
        new = self._registry.log_feedback(
            [
                event.model_dump(exclude={"time_us"})
                | {"request_id": request.request_id, "user_id": user_id, "domain": domain, "at": time_us}
                for event, time_us in zip(request.events, times, strict=True)
            ]
        )
        asked_by = None if user_id is None or domain is None else (user_id, domain)
        for event, time_us in zip(request.events, times, strict=True) if new else ():
            # Sent again without a time of its own, an event would have another time and look like a second one.
            if self._pushed.put((request.request_id, event.item_id, event.action), None):
                self._pushes.put(_Push(request.request_id, asked_by, event, time_us, time.monotonic()))
        return FeedbackAnswer(request_id=request.request_id, accepted=new, duplicates=len(request.events) - new)

    def close(self) -> None:
        """Push what is waiting, then stop; feedback whose request nobody knows yet waits no longer."""
        self._closing = True
        self._pushes.close()

    def _push(self, pushes: Sequence[_Push]) -> None:
        unknown = {push.request_id for push in pushes if push.asked_by is None}
        held = self._registry.answered(unknown) if unknown else {}
        found = {request_id: (user_id, name) for request_id, (name, user_id) in held.items()}
        for push in pushes:
            asked_by = push.asked_by or found.get(push.request_id)
            if asked_by is not None:
                self._push_one(asked_by, push)
            elif not self._closing and time.monotonic() - push.since < UNCLAIMED_S:
                # The worker that answered writes its log a moment later.
                time.sleep(0.05)
                self._pushes.put(push)

    def _push_one(self, asked_by: tuple[str, str], push: _Push) -> None:
        user_id, name = asked_by
        domain = self._find_domain(name)
        if domain is None:
            return
        if self._store is None:
            self._store = self._repo.store()
        event = PushedEvent(
            user_id=user_id,
            item=domain.item_index.get(push.event.item_id, 0),
            domain=domain.number,
            action=action_code(push.event.action),
            value=push.event.value,
            time_us=push.time_us,
        )
        try:
            push_event(self._repo, self._store, event, target=domain.name if domain.role == "target" else None)
        except Exception:
            # A new connection next time: this one may hold a store that went away.
            self._store = None
            raise

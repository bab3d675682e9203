"""One process of the prediction service without its HTTP: what it holds, and what it does for a request.

One thread scores. A second one would only take turns with it on one core, and every request would wait longer; so
requests queue here, as many as ``MOST_WAITING``, and the event loop stays free to say that the process is alive.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from deployment.engine import scorer
from deployment.engine.scorer import LiveDomain, Scores
from deployment.engine.snapshot import Snapshot, SnapshotBuilder, Watcher
from deployment.messages import Candidate, DomainStatus, FeedbackEvent, FeedbackRequest, RankRequest
from deployment.records.journal import Background
from deployment.records.metrics import Metrics
from domains.errors import UnknownDomain
from domains.events.histories import action_code
from domains.registry.registry import Registry
from feature_repo.definitions import FeatureRepo
from feature_repo.materialise import PushedEvent, push_event
from feature_repo.online import Events, FeatureStoreDown, OnlineFeatures, UserFeatures
from models.training.allocator import keep_freed_memory
from orchestrator.data.online import feature_repo
from orchestrator.errors import Overloaded
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")

MOST_WAITING = 64
"""Requests that wait for the scoring thread; the next one is turned away at once."""
LOGGED_POSITIONS = 20
"""Positions of each answer that the prediction log keeps: what a user could have seen without scrolling far."""
REMEMBERED_REQUESTS = 50_000
UNCLAIMED_S = 5.0
"""How long feedback waits for the record of the request that it answers, to reach the user's online history."""


@dataclass(frozen=True)
class Ranking:
    """An answer, and what it took."""

    body: dict[str, Any]
    queue_ms: float
    """Waiting for the requests before it."""
    features_ms: float
    model_ms: float
    total_ms: float


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


class Serving:
    """Snapshot, features, scoring thread and logs of one process. Start it once; it stops with ``close``."""

    def __init__(self, settings: Settings, *, registry: Registry | None = None, watch_every_s: float = 0.5) -> None:
        self._settings = settings
        self._registry = registry or Registry(settings.registry_url)
        self._repo: FeatureRepo = feature_repo(settings)
        self._online = OnlineFeatures(self._repo)
        self._watcher = Watcher(
            SnapshotBuilder(registry=self._registry, settings=settings),
            self._registry,
            every_s=watch_every_s,
            before_swap=self._warm_new,
            on_swap=self._swapped,
        )
        self._scoring = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")
        self._waiting = 0
        self._predictions: Background[dict[str, Any]] = Background("predictions", self._log_predictions)
        self._pushes: Background[_Push] = Background("pushes", self._push, batch=50, linger_s=0.0)
        self._push_store: Any = None
        self._asked: _Latest[str, tuple[str, str]] = _Latest(REMEMBERED_REQUESTS)
        self._pushed: _Latest[tuple[str, str, str], bool] = _Latest(REMEMBERED_REQUESTS)
        self._features_down = ""
        self._metrics = Metrics()
        self.ready = False

    @property
    def snapshot(self) -> Snapshot:
        return self._watcher.snapshot

    @property
    def lost_records(self) -> int:
        return self._predictions.lost + self._pushes.lost

    @property
    def features(self) -> str:
        """``up``, or why the last read of features failed."""
        return self._features_down or "up"

    def start(self) -> None:
        """Load what is live and warm up; afterwards the process is ready."""
        torch.set_num_threads(1)
        keep_freed_memory()
        self._watcher.start()
        self._scoring.submit(self._warm_up).result()
        self.ready = True
        logger.info("service ready", extra={"domains": len(self.snapshot.domains)})

    @staticmethod
    def settle_memory() -> None:
        """Tell the garbage collector that what is loaded stays: walking it costs over 100 ms each time."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(2_000, 20, 1_000_000)

    def close(self) -> None:
        """Finish what is waiting, keep the records, stop the threads."""
        self.ready = False
        self._watcher.stop()
        self._scoring.shutdown(wait=True)
        self._predictions.close()
        self._pushes.close()

    async def rank(self, name: str, request: RankRequest) -> Ranking:
        """Score a request on the scoring thread.

        Raises:
            UnknownDomain: no such domain, as far as this process knows.
            Overloaded: too many requests wait already.
        """
        domain = self._domain(name)
        if self._waiting >= MOST_WAITING:
            raise Overloaded(f"{self._waiting} requests are waiting; try again shortly")
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._scoring, self._rank, domain, request, time.perf_counter()
            )
        finally:
            self._waiting -= 1

    def _rank(self, domain: LiveDomain, request: RankRequest, arrived: float) -> Ranking:
        began = time.perf_counter()
        request_id = request.request_id or uuid.uuid4().hex
        user, down = self._read_user(domain, request.user_id)
        read = time.perf_counter()
        scores = self._scores(domain, request, user, down)
        order = np.argsort(-scores.score, kind="stable")[: request.top_k]
        items = []
        for at in order.tolist():
            item = {"item_id": request.items[at].item_id, "score": float(scores.score[at])}
            reason = scorer.ITEM_UNKNOWN if scores.unknown[at] else scores.reason
            if reason is not None:
                item["reason"] = reason
            items.append(item)
        ended = time.perf_counter()
        body: dict[str, Any] = {
            "request_id": request_id,
            "domain": domain.name,
            "model_version": scores.model_version,
            "served_by": scores.served_by,
            "took_ms": round((ended - began) * 1e3, 3),
            "items": items,
        }
        if scores.reason is not None:
            body["reason"] = scores.reason
        self._metrics.answered(domain.name, scores.served_by, scores.reason)
        self._asked.put(request_id, (request.user_id, domain.name))
        self._predictions.put({"user_id": request.user_id, "at": datetime.now(UTC), "body": body})
        return Ranking(body, (began - arrived) * 1e3, (read - began) * 1e3, (ended - read) * 1e3, (ended - began) * 1e3)

    def _read_user(self, domain: LiveDomain, user_id: str) -> tuple[UserFeatures | None, bool]:
        if domain.served_by == "prior":
            return None, False
        try:
            user = self._online.read_user(user_id, domain.name)
        except FeatureStoreDown as error:
            self._features_down = str(error)
            return None, True
        self._features_down = ""
        return user, False

    def _scores(self, domain: LiveDomain, request: RankRequest, user: UserFeatures | None, down: bool) -> Scores:
        if down:
            return scorer.prior_scores(domain, request.items, scorer.FEATURES_UNAVAILABLE)
        try:
            return scorer.score(
                domain,
                request.items,
                user=user,
                profile=request.user,
                context=request.context,
                now_us=time.time_ns() // 1_000,
            )
        except Exception:
            # A page without a ranking is worse than one ranked by popularity; the log says what to repair.
            logger.exception("scoring failed", extra={"domain": domain.name})
            return scorer.prior_scores(domain, request.items, scorer.MODEL_FAULT)

    def feedback(self, request: FeedbackRequest) -> tuple[int, int]:
        """Keep feedback, then put it into the user's online history; (new, already known).

        Raises:
            UnknownDomain: it names a domain that nobody knows.
        """
        user_id, domain = self._asked.get(request.request_id) or (request.user_id, request.domain)
        if domain is not None:
            self._domain(domain)
        now_us = time.time_ns() // 1_000
        rows = [
            {
                "request_id": request.request_id,
                "item_id": event.item_id,
                "action": event.action,
                "value": event.value,
                "user_id": user_id,
                "domain": domain,
                "at": event.time_us if event.time_us is not None else now_us,
            }
            for event in request.events
        ]
        new = self._registry.log_feedback(rows)
        asked_by = None if user_id is None or domain is None else (user_id, domain)
        for event in request.events if new else ():
            # Sent again without a time of its own, an event would have another time and look like a second one.
            if self._pushed.put((request.request_id, event.item_id, event.action), True):
                time_us = event.time_us if event.time_us is not None else now_us
                self._pushes.put(_Push(request.request_id, asked_by, event, time_us, time.monotonic()))
        return new, len(rows) - new

    def status(self) -> list[DomainStatus]:
        """Every domain as this process answers for it."""
        return [
            DomainStatus(
                name=domain.name,
                role=domain.role,
                task=domain.task,
                state=domain.state,
                served_by=domain.served_by,
                model_version=domain.model.version_id if domain.served_by != "prior" and domain.model else None,
                items=len(domain.item_index),
                fault=domain.fault,
            )
            for domain in self.snapshot.domains.values()
        ]

    def _domain(self, name: str) -> LiveDomain:
        domain = self.snapshot.domains.get(name)
        if domain is None:
            # It may have been registered this very moment.
            self._watcher.look_now()
            raise UnknownDomain(f"no domain {name!r} is registered here", domain=name)
        return domain

    def _log_predictions(self, entries: Sequence[Any]) -> None:
        rows = []
        for entry in entries:
            body = entry["body"]
            for position, item in enumerate(body["items"][:LOGGED_POSITIONS]):
                rows.append(
                    {
                        "request_id": body["request_id"],
                        "item_id": item["item_id"],
                        "domain": body["domain"],
                        "user_id": entry["user_id"],
                        "score": item["score"],
                        "position": position,
                        "model_version": body["model_version"],
                        "served_by": body["served_by"],
                        "at": entry["at"],
                    }
                )
        self._registry.log_predictions(rows)
        self._metrics.lost(self.lost_records)

    def _push(self, pushes: Sequence[_Push]) -> None:
        unknown = {push.request_id for push in pushes if push.asked_by is None}
        held = self._registry.answered(unknown) if unknown else {}
        found = {request_id: (user_id, name) for request_id, (name, user_id) in held.items()}
        for push in pushes:
            asked_by = push.asked_by or found.get(push.request_id)
            if asked_by is not None:
                self._push_one(asked_by, push)
            elif self.ready and time.monotonic() - push.since < UNCLAIMED_S:
                # The worker that answered writes its log a moment later.
                time.sleep(0.05)
                self._pushes.put(push)

    def _push_one(self, asked_by: tuple[str, str], push: _Push) -> None:
        user_id, name = asked_by
        domain = self.snapshot.domains.get(name)
        if domain is None:
            return
        if self._push_store is None:
            self._push_store = self._repo.store()
        event = PushedEvent(
            user_id=user_id,
            item=domain.item_index.get(push.event.item_id, 0),
            domain=domain.number,
            action=action_code(push.event.action),
            value=push.event.value,
            time_us=push.time_us,
        )
        try:
            push_event(self._repo, self._push_store, event, target=domain.name if domain.role == "target" else None)
        except Exception:
            # A new connection next time: this one may hold a store that went away.
            self._push_store = None
            raise

    def _swapped(self, snapshot: Snapshot) -> None:
        self._metrics.swapped(snapshot.generation, len(snapshot.faults))
        self._online.refresh()

    def _warm_new(self, old: Snapshot, new: Snapshot) -> None:
        """Use each new version once, here in the watcher's thread, while the old one still answers."""
        if not self.ready:
            return
        for domain in new.domains.values():
            before = old.domains.get(domain.name)
            if before is None or before.model is not domain.model:
                self._warm_domain(domain)

    def _warm_up(self) -> None:
        for domain in self.snapshot.domains.values():
            self._read_user(domain, "-")
            self._warm_domain(domain)

    def _warm_domain(self, domain: LiveDomain) -> None:
        """A made-up request, so that no real one pays for the first use of a version."""
        if domain.model is None:
            return
        now = time.time_ns() // 1_000
        one = np.ones(1, np.int64)
        events = Events(one, one * domain.number, one, one.astype(np.float64), one * (now - 1))
        user = UserFeatures("-", 0, {}, events, Events.none())
        try:
            scorer.score(domain, [Candidate(item_id="-")] * 8, user=user, now_us=now)
        except Exception:
            logger.exception("warm-up failed", extra={"domain": domain.name})

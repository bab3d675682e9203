"""One process of the prediction service without its HTTP: what it holds, and what it does for a request.

One thread reads features and one scores. More of them would only take turns on one core, and every request would wait
longer; so requests queue here, as many as ``MOST_WAITING``, and the event loop stays free to say that the process is
alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

import torch
from sqlalchemy.exc import OperationalError

from deployment.engine import scorer
from deployment.engine.answers import Answered, rank_answer
from deployment.engine.claims import Claims
from deployment.engine.features import FeatureReads
from deployment.engine.feedback import Feedback, RegistryAway, UnknownRequest
from deployment.engine.prepared import Prepared, warm
from deployment.engine.pusher import Pusher
from deployment.engine.request_checks import checked
from deployment.engine.scorer import LiveDomain, Scores
from deployment.engine.snapshot import Snapshot, SnapshotBuilder, Watcher
from deployment.messages import (
    DomainsAnswer,
    DomainStatus,
    FeedbackAnswer,
    FeedbackRequest,
    OutboxStatus,
    RankAnswer,
    RankRequest,
)
from deployment.records.journal import Background
from deployment.records.metrics import Metrics
from domains.errors import UnknownDomain
from domains.registry.key_verbs import ApiKey
from domains.registry.outbox import OutboxSize
from domains.registry.registry import Registry
from feature_repo.online import FeatureStoreDown, OnlineFeatures, UserFeatures
from models.training.allocator import keep_freed_memory
from orchestrator.data.online import feature_repo
from orchestrator.errors import Overloaded, RegistryUnread
from orchestrator.settings import Settings

logger = logging.getLogger(__name__)

MOST_WAITING, ALWAYS_WAITING = 64, 8
MOST_WAIT_S = 1.0
"""Requests that wait for the scoring thread: no more than so many, and beyond ``ALWAYS_WAITING`` no more than it
answers in this time at its latest pace. The next one is turned away at once."""
_PACE_MEMORY = 0.9

FEEDBACK_S = 1.7
"""How long feedback waits for the registry before it is turned away."""
LOG_LAG_S = 0.6
"""How long feedback waits for the record of the request that it answers, which another worker may be writing."""

T = TypeVar("T")


@dataclass(frozen=True)
class Ranking:
    """An answer, and how long each part took."""

    answer: RankAnswer
    queue_ms: float
    """Waiting for the requests before it."""
    features_ms: float
    model_ms: float


class Serving:
    """Snapshot, features, scoring thread and logs of one process. Start it once; it stops with ``close``."""

    def __init__(
        self,
        settings: Settings,
        *,
        registry: Registry | None = None,
        prepared: Prepared | None = None,
        watch_every_s: float = 0.5,
    ) -> None:
        self._registry = registry or Registry(settings.registry_url)
        repo = feature_repo(settings)
        self._online = OnlineFeatures(repo)
        self._features = FeatureReads(self._online.read_user)
        self._watcher = Watcher(
            prepared.builder if prepared else SnapshotBuilder(registry=self._registry, settings=settings),
            self._registry,
            snapshot=prepared.snapshot if prepared else Snapshot(),
            every_s=watch_every_s,
            before_swap=self._warm_new,
            on_swap=self._swapped,
        )
        self._scoring = ThreadPoolExecutor(max_workers=1, thread_name_prefix="scoring")
        self._waiting = 0
        self._pace_s = 0.0
        self._predictions: Background[Answered] = Background(
            "predictions", self._log_predictions, away=(OperationalError,)
        )
        impatient = Registry(settings.registry_url, wait_s=1.0)
        self._pusher = Pusher(
            registry=impatient, repo=repo, domains=lambda: self.snapshot.domains, on_look=self._outbox_seen
        )
        self._feedback = Feedback(registry=impatient, find_domain=self._find_domain, on_kept=self._pusher.wake)
        self._taking = ThreadPoolExecutor(max_workers=4, thread_name_prefix="feedback")
        self._claims = Claims(self._feedback)
        self._untaken = 0
        self._metrics = Metrics()
        self._started = False

    @property
    def ready(self) -> bool:
        """Whether it may be sent requests: it is loaded, and knows what the registry says now."""
        return self._started and self._watcher.fault is None

    @property
    def snapshot(self) -> Snapshot:
        return self._watcher.snapshot

    @property
    def overloaded(self) -> bool:
        """Whether the next request to rank would be turned away."""
        too_long = self._waiting >= ALWAYS_WAITING and self._waiting * self._pace_s > MOST_WAIT_S
        return too_long or self._waiting >= MOST_WAITING

    @property
    def registry(self) -> str:
        """up, or why what is loaded may be behind the registry."""
        return self._watcher.fault or "up"

    @property
    def features(self) -> str:
        """up, or why requests are answered without their users' features."""
        return self._features.fault or "up"

    @property
    def lost_records(self) -> int:
        """Predictions and pushes that could not be kept since the process started."""
        return self._predictions.lost + self._pusher.lost

    def start(self) -> None:
        """Load what is live and warm up; afterwards the process is ready, or as soon as the registry can be read."""
        torch.set_num_threads(1)
        keep_freed_memory()
        self._watcher.start()
        self._scoring.submit(self._warm_up).result()
        self._pusher.start()
        self._started = True
        logger.info("service started", extra={"domains": len(self.snapshot.domains), "registry": self.registry})

    @staticmethod
    def settle_memory() -> None:
        """Tell the garbage collector that what is loaded stays: walking it costs over 100 ms each time."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(2_000, 20, 1_000_000)

    def close(self) -> None:
        """Finish what is waiting, keep the records, stop the threads."""
        self._started = False
        self._watcher.stop()
        self._features.close()
        self._scoring.shutdown(wait=True)
        self._predictions.close()
        self._claims.close()
        self._taking.shutdown(wait=True, cancel_futures=True)
        self._pusher.close()

    async def rank(self, name: str, request: RankRequest) -> Ranking:
        """Score a request on the scoring thread.

        Raises:
            UnknownDomain: no such domain, as far as this process knows.
            RegistryUnread: this process could not read yet which domains there are.
            RequestIdTaken: its id names the ranking of another user or domain.
            Overloaded: too many requests wait already.
        """
        domain = self._domain(name)
        if self.overloaded:
            raise Overloaded(f"{self._waiting} requests are waiting; try again shortly")
        claim = self._claims.begin(request, domain.name)
        self._waiting += 1
        try:
            began = time.perf_counter()
            user, down = await self._user(domain, request.user_id)
            read = time.perf_counter()
            scoring = partial(self._rank, domain, request, user, down, read)
            ranking = await asyncio.get_running_loop().run_in_executor(self._scoring, scoring)
            ranking = replace(ranking, features_ms=(read - began) * 1e3)
        finally:
            self._waiting -= 1
        await self._claims.end(claim, request, domain.name)
        return ranking

    def _rank(
        self, domain: LiveDomain, request: RankRequest, user: UserFeatures | None, down: str | None, queued: float
    ) -> Ranking:
        began = time.perf_counter()
        if began - queued > 2 * MOST_WAIT_S:
            # Its caller has given up or soon will; those behind it need not wait for that too.
            raise Overloaded("it waited too long for its turn; try again shortly")
        request, warnings = checked(domain, request)
        if down is None:
            scores = self._scores(domain, request, user)
        else:
            scores = scorer.prior_scores(domain, request.items, down)
        answer = rank_answer(domain.name, request, scores, began=began, warnings=warnings)
        took_s = time.perf_counter() - began
        self._pace_s = _PACE_MEMORY * self._pace_s + (1 - _PACE_MEMORY) * took_s
        self._metrics.answered(domain.name, answer.served_by, answer.reason)
        if request.request_id is None:
            self._feedback.remember(answer.request_id, user_id=request.user_id, domain=domain.name)
        self._predictions.put(Answered.of(answer, request.user_id, datetime.now(UTC)))
        return Ranking(answer, queue_ms=(began - queued) * 1e3, features_ms=0.0, model_ms=took_s * 1e3)

    async def _user(self, domain: LiveDomain, user_id: str) -> tuple[UserFeatures | None, str | None]:
        """The user's features, and why the feature store gave none."""
        if domain.served_by == "prior":
            return None, None
        try:
            return await self._features.user(user_id, domain.name), None
        except FeatureStoreDown:
            return None, scorer.FEATURES_UNAVAILABLE

    def _scores(self, domain: LiveDomain, request: RankRequest, user: UserFeatures | None) -> Scores:
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

    async def feedback(self, request: FeedbackRequest, key: ApiKey | None = None) -> FeedbackAnswer:
        """Keep feedback; the outbox brings it into the user's online history. It never waits ``FEEDBACK_S`` or more.

        Raises:
            InvalidFeedback: a field cannot be true.
            FeedbackConflict: it contradicts what is on record.
            UnknownDomain: it names a domain that nobody knows.
            KeyRefused: the caller's key does not count in that domain.
            Unavailable: the registry does not answer, or too much waits already.
        """
        until = time.monotonic() + FEEDBACK_S
        known_until = time.monotonic() + LOG_LAG_S
        if request.domain is not None:
            self._domain(request.domain)
        while True:
            try:
                return await self._take(
                    partial(self._feedback.take, key=key), request, within_s=until - time.monotonic()
                )
            except UnknownRequest:
                if time.monotonic() >= known_until:
                    raise
                # The worker that answered writes its log a moment later.
                await asyncio.sleep(0.1)

    async def _take(self, work: Callable[[Any], T], argument: Any, *, within_s: float) -> T:
        """Do a piece of work with the registry on one of few threads, or give it up in time."""
        if self._untaken >= MOST_WAITING:
            raise Overloaded(f"{self._untaken} requests wait for the registry; try again shortly")
        self._untaken += 1
        try:
            future = asyncio.get_running_loop().run_in_executor(self._taking, work, argument)
            return await asyncio.wait_for(future, within_s)
        except TimeoutError:
            raise RegistryAway("the registry does not answer in time; send it again") from None
        finally:
            self._untaken -= 1

    def status(self) -> DomainsAnswer:
        """How this process is, and every domain as it answers for it."""
        domains = [
            DomainStatus(
                name=domain.name,
                role=domain.role,
                task=domain.task,
                state=domain.state,
                served_by=domain.served_by,
                model_version=domain.model.version_id if domain.served_by != "prior" and domain.model else None,
                items=len(domain.item_index),
                fault=domain.fault,
                forced=domain.forced if domain.served_by != "prior" else None,
            )
            for domain in self.snapshot.domains.values()
        ]
        return DomainsAnswer(
            generation=self.snapshot.generation,
            registry=self.registry,
            features=self.features,
            lost_records=self.lost_records,
            outbox=OutboxStatus(events=self._pusher.size.events, oldest_s=round(self._pusher.size.oldest_s, 1)),
            domains=domains,
        )

    def _find_domain(self, name: str) -> LiveDomain | None:
        return self.snapshot.domains.get(name)

    def _domain(self, name: str) -> LiveDomain:
        domain = self._find_domain(name)
        if domain is None:
            # Another process may have registered it a moment ago.
            self._watcher.look_now()
            if self.snapshot.generation < 0:
                raise RegistryUnread("the registry could not be read yet; try again shortly")
            raise UnknownDomain(f"no domain {name!r} is registered here", domain=name)
        return domain

    def _log_predictions(self, answered: Sequence[Answered]) -> None:
        self._registry.log_predictions([row for one in answered for row in one.log_rows()])
        self._metrics.lost(self.lost_records)

    def _outbox_seen(self, size: OutboxSize) -> None:
        self._metrics.outbox(size.events, size.oldest_s)
        self._metrics.lost(self.lost_records)

    def _swapped(self, snapshot: Snapshot) -> None:
        self._metrics.swapped(snapshot.generation, len(snapshot.faults))
        self._online.refresh()

    def _warm_new(self, old: Snapshot, new: Snapshot) -> None:
        """Use each new version once in the watcher's thread, while the old one still answers."""
        if not self._started:
            return
        for domain in new.domains.values():
            before = old.domains.get(domain.name)
            if before is None or before.model is not domain.model:
                warm(domain)

    def _warm_up(self) -> None:
        for domain in self.snapshot.domains.values():
            if domain.served_by != "prior" and self._features.fault is None:
                with contextlib.suppress(FeatureStoreDown):
                    self._features.user_now("-", domain.name)
            warm(domain)

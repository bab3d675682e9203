"""Feedback: checked as strictly as ingest, then kept in the registry together with its way to the online store."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from deployment.engine.scorer import LiveDomain
from deployment.messages import FeedbackAnswer, FeedbackEvent, FeedbackRequest
from domains.errors import KeyRefused, Rejected, UnknownDomain
from domains.events.histories import ACTIONS, action_code
from domains.registry.key_verbs import ApiKey
from domains.registry.prediction_log import FeedbackConflict
from domains.registry.registry import Registry
from domains.registry.request_ids import Asked
from orchestrator.errors import Overloaded, Unavailable

REMEMBERED_REQUESTS = 50_000
CLOCK_SKEW = timedelta(minutes=5)
"""How far the clocks of the caller and of this machine may differ: so much an event may lie before its ranking or
after now."""
OLDEST_UNRANKED = timedelta(days=30)
"""How old an event may be whose ranking is not on record."""
MOST_UNPUSHED = 50_000
"""Events that may wait for the online store; beyond that feedback is turned away before it is acknowledged."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNITS = (("seconds", 1_000_000.0), ("milliseconds", 1_000.0), ("nanoseconds", 0.001))


class InvalidFeedback(Rejected):
    """Feedback that cannot be true; ``details["field"]`` names what is wrong."""


class UnknownRequest(InvalidFeedback):
    """No ranking of this id is on record, and the feedback does not say whose it is."""


class RegistryAway(Unavailable):
    """The registry's database does not answer in time."""

    code = "database_unavailable"


class Requests:
    """The latest rankings of this process, by request id; from any thread."""

    def __init__(self, most: int = REMEMBERED_REQUESTS) -> None:
        self._most = most
        self._held: OrderedDict[str, Asked] = OrderedDict()
        self._lock = threading.Lock()

    def claim(self, request_id: str, asked: Asked) -> Asked:
        """Hold who asks, unless the id is held already; returns who holds it."""
        with self._lock:
            first = self._held.setdefault(request_id, asked)
            self._held.move_to_end(request_id)
            if len(self._held) > self._most:
                self._held.popitem(last=False)
            return first

    def get(self, request_id: str) -> Asked | None:
        with self._lock:
            return self._held.get(request_id)


class RequestIdTaken(FeedbackConflict):
    """The request id names the ranking of another user or domain."""


class Feedback:
    """Takes the feedback of one process.

    Args:
        registry: one whose verbs wait a second at most, as a caller waits for each.
        find_domain: the domain as this process answers for it now, or None.
        on_kept: called when events were put into the outbox.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        find_domain: Callable[[str], LiveDomain | None],
        on_kept: Callable[[], None] = lambda: None,
    ) -> None:
        self._registry = registry
        self._find_domain = find_domain
        self._on_kept = on_kept
        self._requests = Requests()

    def knows(self, request_id: str) -> bool:
        """Whether this process remembers the ranking."""
        return self._requests.get(request_id) is not None

    def claim(self, request_id: str, *, user_id: str, domain: str) -> None:
        """Hold the id in the registry, against every other process, and remember whose it is."""
        asked = Asked(domain, user_id, datetime.now(UTC))
        self._requests.claim(request_id, self._registry.claim_request(request_id, asked))

    def remember(self, request_id: str, *, user_id: str, domain: str) -> None:
        """Note who asks, in which domain and when, for the feedback that answers.

        Raises:
            RequestIdTaken: the id is another user's, or of another domain.
        """
        first = self._requests.claim(request_id, Asked(domain, user_id, datetime.now(UTC)))
        if (first.user_id, first.domain) != (user_id, domain):
            problem = f"request_id: {request_id!r} names a ranking of another user or domain"
            raise RequestIdTaken(problem, field="request_id")

    def take(self, request: FeedbackRequest, key: ApiKey | None = None) -> FeedbackAnswer:
        """Keep feedback, all of it or nothing, and queue what is new of it for the user's online history.

        Raises:
            InvalidFeedback: a field cannot be true.
            FeedbackConflict: it contradicts what is on record.
            UnknownDomain: it names a domain that nobody knows.
            KeyRefused: the caller's key does not count in the domain.
            Overloaded: too much waits for the online store.
            sqlalchemy.exc.OperationalError: the registry's database does not answer, as with every verb.
        """
        asked = self._requests.get(request.request_id)
        if asked is None:
            asked = self._registry.answered({request.request_id}).get(request.request_id)
        name = asked.domain if asked is not None else request.domain
        if key is not None and name is not None and not key.covers(name):
            raise KeyRefused(f"key {key.name!r} does not allow feedback in domain {name!r}", domain=name)
        user_id, domain = self._who(request, asked)
        now = datetime.now(UTC)
        times = [
            _time(event, at, asked, now) for at, event in enumerate(request.events) if _plausible(event, at, domain)
        ]
        if self._registry.unpushed(MOST_UNPUSHED) + len(times) > MOST_UNPUSHED:
            raise Overloaded("too many events wait for the online store; try again shortly")
        new = self._registry.log_feedback(
            [
                event.model_dump(exclude={"time_us"})
                # Under one name: a retry that calls it otherwise is the same event.
                | {"action": ACTIONS[action_code(event.action)]}
                | {"request_id": request.request_id, "user_id": user_id, "domain": domain.name, "at": time}
                | {"ranked": asked is not None}
                for event, time in zip(request.events, times, strict=True)
            ],
            push=True,
        )
        if new:
            self._on_kept()
        return FeedbackAnswer(request_id=request.request_id, accepted=new, duplicates=len(request.events) - new)

    def _who(self, request: FeedbackRequest, asked: Asked | None) -> tuple[str, LiveDomain]:
        for name in ("user_id", "domain"):
            given = getattr(request, name)
            if asked is None and given is None:
                raise UnknownRequest(f"{name}: is needed, as no ranking of this request_id is on record", field=name)
            if asked is not None and given is not None and given != getattr(asked, name):
                raise FeedbackConflict(f"{name}: the ranking is of another {name}", field=name)
        user_id = asked.user_id if asked is not None else request.user_id
        wanted = asked.domain if asked is not None else request.domain
        assert user_id is not None
        assert wanted is not None
        domain = self._find_domain(wanted)
        if domain is None:
            raise UnknownDomain(f"no domain {wanted!r} is registered here", domain=wanted)
        return user_id, domain


def _plausible(event: FeedbackEvent, at: int, domain: LiveDomain) -> bool:
    """True where item, action and value can be.

    Raises:
        InvalidFeedback: one of them cannot.
    """
    if event.item_id not in domain.item_index:
        raise _wrong(at, "item_id", f"the domain {domain.name!r} has no item {event.item_id[:80]!r}")
    if not action_code(event.action):
        raise _wrong(at, "action", "is no kind of event, such as click, view, cart, buy, like, rate or hide")
    low, high = domain.label_range
    if not low <= event.value <= high:
        raise _wrong(at, "value", f"lies outside the domain's label_range of {low:g} to {high:g}")
    return True


def _time(event: FeedbackEvent, at: int, asked: Asked | None, now: datetime) -> datetime:
    """When an event happened."""
    if event.time_us is None:
        return now
    oldest = now - OLDEST_UNRANKED if asked is None else asked.at - CLOCK_SKEW
    latest = now + CLOCK_SKEW
    if _us(oldest) <= event.time_us <= _us(latest):
        return _EPOCH + timedelta(microseconds=event.time_us)
    for unit, factor in _UNITS:
        if _us(now - timedelta(days=3650)) <= event.time_us * factor <= _us(now + timedelta(days=3650)):
            raise _wrong(at, "time_us", f"looks like {unit}; it is in microseconds since 1970 UTC")
    if event.time_us > _us(latest):
        raise _wrong(at, "time_us", "lies in the future")
    reason = f"is over {OLDEST_UNRANKED.days} days old, and no ranking is on record"
    raise _wrong(at, "time_us", reason if asked is None else "lies before the ranking that it answers")


def _us(time: datetime) -> int:
    return (time - _EPOCH) // timedelta(microseconds=1)


def _wrong(at: int, name: str, problem: str) -> InvalidFeedback:
    field = f"events.{at}.{name}"
    return InvalidFeedback(f"{field}: {problem}", field=field)

"""The breaker before the feature store: who waits, for how long, and how often the store is asked while it is away."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from deployment.engine import features
from deployment.engine.features import FeatureReads
from feature_repo.online import FeatureStoreDown

LIMIT_S = 0.2


class Store:
    """Answers, fails or hangs as told."""

    def __init__(self) -> None:
        self.reads = 0
        self.fault = ""
        self.hangs_s = 0.0
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def read(self, user_id: str, domain: str) -> None:
        self.reads += 1
        time.sleep(self.hangs_s)
        self.may_go_on.wait(30)
        if self.fault:
            raise FeatureStoreDown(self.fault)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setattr(features, "SHORTEST_LIMIT_S", LIMIT_S)
    monkeypatch.setattr(features, "LONGEST_LIMIT_S", LIMIT_S)
    return Store()


@pytest.fixture
def reads(store: Store) -> Iterator[FeatureReads]:
    made = FeatureReads(store.read)
    yield made
    store.may_go_on.set()
    made.close()


async def ask(reads: FeatureReads, times: int = 1) -> tuple[int, float]:
    """How many of so many requests at once went without features, and how long the slowest took, in seconds."""
    began = time.monotonic()
    results = await asyncio.gather(*(reads.user("u", "live") for _ in range(times)), return_exceptions=True)
    assert all(one is None or isinstance(one, FeatureStoreDown) for one in results)
    return sum(one is not None for one in results), time.monotonic() - began


def eventually(holds: Callable[[], bool], within_s: float = 10) -> None:
    until = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_a_store_that_hangs_holds_those_who_ask_now_and_nobody_after_them(reads: FeatureReads, store: Store) -> None:
    """Twenty at once wait the limit together; the next twenty do not wait; afterwards it heals by itself."""
    store.may_go_on.clear()
    without, took_s = asyncio.run(ask(reads, 20))
    assert without == 20
    assert took_s < 3 * LIMIT_S
    assert reads.fault == "no answer within 200 ms"
    without, took_s = asyncio.run(ask(reads, 20))
    assert (without, store.reads) == (20, 1)
    assert took_s < LIMIT_S
    store.may_go_on.set()
    eventually(lambda: reads.fault is None)
    assert asyncio.run(ask(reads, 20))[0] == 0


def test_a_store_that_fails_is_asked_less_and_less_and_by_no_request(reads: FeatureReads, store: Store) -> None:
    """Pauses double: in two seconds there are few attempts, however many requests come."""
    store.fault = "refused"
    assert asyncio.run(ask(reads, 50))[0] == 50
    assert store.reads == 1
    until = time.monotonic() + 2
    while time.monotonic() < until:
        assert asyncio.run(ask(reads))[0] == 1
        time.sleep(0.01)
    assert reads.fault == "refused"
    assert 2 <= store.reads <= 7
    store.fault = ""
    eventually(lambda: reads.fault is None)


def test_a_store_that_answers_too_late_is_away_until_it_answers_in_time(reads: FeatureReads, store: Store) -> None:
    """It costs one request, although each read succeeds in the end."""
    store.hangs_s = 2 * LIMIT_S
    assert asyncio.run(ask(reads))[0] == 1
    eventually(lambda: "answers after" in (reads.fault or ""))
    store.hangs_s = 0.0
    eventually(lambda: reads.fault is None)


def test_a_store_that_comes_and_goes_is_left_alone_longer_each_time(reads: FeatureReads, store: Store) -> None:
    """The pauses of one outage go on in the next that follows soon."""
    for _ in range(3):
        store.fault = "refused"
        assert asyncio.run(ask(reads))[0] == 1
        store.fault = ""
        eventually(lambda: reads.fault is None)
    began, store.fault = time.monotonic(), "refused"
    asyncio.run(ask(reads))
    store.fault = ""
    eventually(lambda: reads.fault is None)
    assert time.monotonic() - began > 4 * features.FIRST_REST_S


def test_the_limit_follows_what_reads_take_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where reads are quick it comes down to the shortest; where they are slow it leaves them room."""
    monkeypatch.setattr(features, "SHORTEST_LIMIT_S", 0.05)
    monkeypatch.setattr(features, "LONGEST_LIMIT_S", 3.0)
    store = Store()
    reads = FeatureReads(store.read)
    assert reads.limit_s == 3.0
    for _ in range(300):
        asyncio.run(ask(reads))
    assert reads.limit_s < 1.0
    store.hangs_s = 0.15
    for _ in range(3):
        asyncio.run(ask(reads))
    assert reads.fault is not None or reads.limit_s >= 0.6
    reads.close()

"""What no request waits for: kept while the registry is away, bounded, and counted where it is lost."""

from __future__ import annotations

import threading
import time

from deployment.records.journal import Background


class Away(Exception):
    """Nothing can be taken now."""


def eventually(what) -> None:
    until = time.monotonic() + 10
    while not what():
        assert time.monotonic() < until
        time.sleep(0.01)


def test_records_wait_while_nobody_can_take_them():
    """Nothing is lost before the queue is full; what finds no room is counted; the rest arrives in its order."""
    taken, is_away = [], threading.Event()
    is_away.set()

    def handle(batch):
        if is_away.is_set():
            raise Away
        taken.extend(batch)

    journal = Background[int]("test", handle, away=(Away,), capacity=10, batch=5, linger_s=0)
    journal.put(0)
    eventually(journal._queue.empty)  # noqa: SLF001
    assert [journal.put(number) for number in range(1, 13)] == [True] * 10 + [False] * 2
    time.sleep(1.2)
    assert journal.lost == 2
    is_away.clear()
    eventually(lambda: taken == list(range(11)))
    journal.close()


def test_a_batch_that_cannot_be_kept_holds_up_nothing():
    """It is tried twice; those behind it are kept."""
    taken = []

    def handle(batch):
        if "bad" in batch:
            raise ValueError("bad")
        taken.extend(batch)

    journal = Background[str]("test", handle, away=(Away,), batch=1, linger_s=0)
    journal.put("bad")
    journal.put("good")
    eventually(lambda: taken == ["good"])
    assert journal.lost == 1
    journal.close()


def test_an_end_waits_for_nobody_who_is_away():
    """The process ends within the time that it was given, and counts what it leaves."""

    def handle(_):
        raise Away

    journal = Background[int]("test", handle, away=(Away,), linger_s=0)
    journal.put(1)
    began = time.monotonic()
    journal.close(timeout_s=5)
    assert time.monotonic() - began < 3
    assert journal.lost == 1

"""Callers that rank and send feedback, and remember what they were told."""

from __future__ import annotations

import random
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np

from benchmarks.chaos.stack import TARGET, Stack

CANDIDATES = 10


@dataclass(frozen=True)
class Told:
    """Feedback that was acknowledged."""

    request_id: str
    user_id: str
    item_id: str
    time_us: int
    asked_at: float = 0.0
    """When it was sent (seconds of the monotonic clock)."""
    at: float = 0.0
    """When it was acknowledged."""


@dataclass
class Log:
    """What all callers saw."""

    answers: list[tuple[float, float]] = field(default_factory=list)
    """When each ranking was answered (seconds of the monotonic clock), and what it took, in seconds."""
    versions: list[tuple[float, str | None]] = field(default_factory=list)
    failed: list[tuple[float, str]] = field(default_factory=list)
    """When a ranking failed, and how: a status, or the name of the fault of the connection."""
    told: list[Told] = field(default_factory=list)
    refused: list[tuple[float, float]] = field(default_factory=list)
    """When feedback was turned away, and after how many seconds."""

    def took_ms(self, percentile: float) -> float:
        """What a ranking took; not-a-number before the first."""
        return float(np.percentile([took * 1e3 for _, took in self.answers], percentile)) if self.answers else np.nan

    def took_ms_between(self, percentile: float, since: float, until: float) -> float:
        """What a ranking took that was answered between two moments; not-a-number without one."""
        took = [took * 1e3 for at, took in self.answers if since <= at <= until]
        return float(np.percentile(took, percentile)) if took else np.nan

    def gap_s(self, since: float, until: float) -> float:
        """The longest time without an answer between two moments."""
        inside = sorted(at for at, _ in self.answers if since <= at <= until)
        return float(np.max(np.diff([since, *inside, until])))

    def gap_after(self, at: float, within_s: float = 20.0) -> float:
        """The longest time between two answers that begins within so many seconds of a moment."""
        answers = np.sort([answered for answered, _ in self.answers])
        first = max(0, int(np.searchsorted(answers, at)) - 1)
        began = answers[first:-1]
        gaps = np.diff(answers[first:])[began <= at + within_s]
        return float(np.max(gaps)) if len(gaps) else 0.0

    def failures(self) -> dict[str, int]:
        """How often rankings failed in which way."""
        return dict(Counter(how for _, how in self.failed).most_common(20))


class Load:
    """Callers in threads, from ``with`` to its end; together they ask ``per_s`` times a second."""

    def __init__(self, stack: Stack, *, per_s: float, callers: int = 4, feedback: bool = True) -> None:
        self.log = Log()
        self._url, self._feedback = stack.url, feedback
        self._users, self._items = stack.people()
        self._pause_s = callers / per_s
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(seed,), daemon=True) for seed in range(callers)]

    def __enter__(self) -> Log:
        for thread in self._threads:
            thread.start()
        return self.log

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _ask(self, seed: int) -> None:
        chance = random.Random(seed)
        with httpx.Client(timeout=20) as client:
            due = time.monotonic() + chance.random() * self._pause_s
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                due = max(due + self._pause_s, time.monotonic())
                self._once(client, chance)

    def _once(self, client: httpx.Client, chance: random.Random) -> None:
        user, items = chance.choice(self._users), chance.sample(self._items, CANDIDATES)
        request_id = uuid.uuid4().hex
        body: dict[str, Any] = {"user_id": user, "items": [{"item_id": item} for item in items]}
        body["request_id"] = request_id
        began = time.monotonic()
        answer = self._post(client, f"{self._url}/v1/domains/{TARGET}/rank", body)
        if answer is None:
            return
        self.log.answers.append((time.monotonic(), time.monotonic() - began))
        self.log.versions.append((time.monotonic(), answer["model_version"]))
        if not self._feedback:
            return
        time_us = time.time_ns() // 1000
        event = {"item_id": items[0], "time_us": time_us}
        body = {"request_id": request_id, "user_id": user, "domain": TARGET, "events": [event]}
        asked_at = time.monotonic()
        if self._post(client, f"{self._url}/v1/feedback", body) is not None:
            self.log.told.append(Told(request_id, user, items[0], time_us, asked_at, time.monotonic()))
        else:
            self.log.refused.append((time.monotonic(), time.monotonic() - asked_at))

    def _post(self, client: httpx.Client, url: str, body: dict[str, Any]) -> dict[str, Any] | None:
        try:
            answer = client.post(url, json=body)
        except httpx.HTTPError as fault:
            self.log.failed.append((time.monotonic(), f"{type(fault).__name__} of {url.rsplit('/', 1)[1]}"))
            return None
        if answer.status_code != 200:
            self.log.failed.append((time.monotonic(), f"{answer.status_code} of {url.rsplit('/', 1)[1]}"))
            return None
        return answer.json()

"""Feedback is pushed into the online store while callers ask a hundred times a second."""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime

from benchmarks.chaos.load import Load
from benchmarks.chaos.rows import Measured, Row
from benchmarks.chaos.stack import TARGET, Stack

RANKS_PER_S = 100
CALLERS = 8


def pushes(stack: Stack, seconds: float) -> Measured:
    """A backlog of feedback is emptied beside a hundred rankings a second, each answered by feedback of its own."""
    users, items = stack.people()
    with Load(stack, per_s=RANKS_PER_S, callers=CALLERS) as log:
        time.sleep(2)
        asked, told, began = len(log.answers), len(log.told), time.monotonic()
        backlog = 0
        # As much as keeps it busy: pushes that wait for feedback say nothing of how many there could be.
        while time.monotonic() < began + seconds:
            if stack.registry.unpushed() < 1_500:
                backlog += _told(stack, users, items, 250)
            time.sleep(0.05)
        took_s = time.monotonic() - began
        left = stack.registry.unpushed()
        ranks_per_s = (len(log.answers) - asked) / took_s
        pushed_per_s = (backlog + len(log.told) - told - left) / took_s
    until = time.monotonic() + 60
    while stack.registry.unpushed() and time.monotonic() < until:
        time.sleep(0.1)
    return Measured(
        f"{pushed_per_s:.0f} pushed a second beside {ranks_per_s:.0f} rankings (p99 {log.took_ms(99):.0f} ms), "
        f"{len(log.failed)} failed; {stack.registry.unpushed()} wait at the end",
        pushed_per_s > ranks_per_s and not log.failed and not stack.registry.unpushed(),
        {"pushed_per_s": pushed_per_s, "ranks_per_s": ranks_per_s, "failed": log.failures()},
    )


def _told(stack: Stack, users: list[str], items: list[str], events: int) -> int:
    """Put feedback of many users into the outbox, as the service does."""
    request = uuid.uuid4().hex
    rows = [
        {"request_id": f"{request}-{number}", "user_id": users[number % len(users)], "domain": TARGET}
        | {"item_id": items[number % len(items)], "action": "click", "value": 1.0, "at": datetime.now(UTC)}
        for number in range(events)
    ]
    return stack.registry.log_feedback(rows, push=True)


ROWS = (Row("pushes", f"pushed faster than ranked, beside {RANKS_PER_S} rankings a second", 20, pushes),)

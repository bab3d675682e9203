"""Users to try a ranking with, and what they did lately: for the playground and the demo."""

from __future__ import annotations

from typing import Any

import numpy as np

from domains.events.domain_data import DomainData
from domains.events.histories import Histories
from domains.registry.registry import Registry
from orchestrator.settings import Settings

END_OF_TIME_US = np.iinfo(np.int64).max
MOST_EVENTS = 2000
"""Source events that are counted of one user."""


def sample_users(name: str, *, settings: Settings, most: int = 50) -> list[dict[str, Any]]:
    """Up to ``most`` users of a domain, from the longest source history to none: ``user_id``, ``source_events``."""
    data = DomainData(settings.data_dir, name)
    users = np.unique(data.interactions()["user"].to_numpy())
    users = np.random.default_rng(0).permutation(users)[: most * 4]
    first, stop = Histories.open(settings.data_dir).source.window(
        users, np.full(len(users), END_OF_TIME_US), MOST_EVENTS
    )
    events = stop - first
    spread = np.linspace(0, len(users) - 1, min(most, len(users))).astype(int)
    vocabulary = data.user_vocabulary
    return [
        {"user_id": vocabulary.name(int(users[at])), "source_events": int(events[at])}
        for at in np.argsort(-events)[spread]
    ]


def recent_events(user_id: str, *, settings: Settings, registry: Registry, most: int = 20) -> list[dict[str, Any]]:
    """A user's latest source events, newest first: ``domain``, ``item_id``, ``time_us``, ``value``."""
    data = {domain.number: DomainData(settings.data_dir, domain.name) for domain in registry.domains()}
    user = int(next(iter(data.values())).user_vocabulary.index([user_id])[0])
    if user == 0:
        return []
    seen = Histories.open(settings.data_dir).source.history(user, END_OF_TIME_US, most)
    items = {number: data[number].item_vocabulary for number in data}
    return [
        {
            "domain": data[int(number)].name,
            "item_id": items[int(number)].name(int(item)),
            "time_us": int(time_us),
            "value": float(value),
        }
        for number, item, time_us, value in zip(
            seen.domain[::-1], seen.item[::-1], seen.time_us[::-1], seen.value[::-1], strict=True
        )
    ]

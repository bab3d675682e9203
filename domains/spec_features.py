"""Which names a spec's features may bear, and by which a person may vouch for one."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

Place = tuple[str | int, ...]
"""Where a field is: keys and list positions from the top."""

RESERVED_FEATURES = frozenset(
    {
        *("user_id", "item_id", "user", "item", "time_us", "label", "raw_label"),
        *("action", "domain", "event_timestamp", "created"),
    }
)
"""Columns that validated events and the feature store own; a feature of the same name would overwrite one."""
HISTORIES = ("source history", "own history")
"""What a person vouches for by these names is no column: the events that a row may read."""
ELSEWHERE = re.compile(r"[a-z][a-z0-9-]{1,47}\..+")
"""A feature of another domain's users file."""


def vouched_problems(vouched: Iterable[str], declared: Iterable[str]) -> Iterator[tuple[Place, str]]:
    """Names under ``gate.known_at_request`` that are no feature, so that the words there would have no effect."""
    known = {*declared, *HISTORIES}
    for name in vouched:
        if name not in known and not ELSEWHERE.fullmatch(name):
            yield ("gate", "known_at_request", name), "is no feature that this spec declares"


def feature_problems(place: Place, features: Iterable[str], roles: Mapping[str, str]) -> Iterator[tuple[Place, str]]:
    """Names that are another column already, that Graft writes itself, or that differ only in case."""
    seen: dict[str, str] = {}
    for name in features:
        folded = name.lower()
        if folded in roles:
            yield (*place, name), f"is the {roles[folded]} column, so it cannot also be a feature"
        elif folded in RESERVED_FEATURES:
            yield (*place, name), "is a column that Graft writes itself; rename the feature"
        if folded in seen:
            yield (*place, name), f"differs from {seen[folded]!r} only in case"
        seen[folded] = name

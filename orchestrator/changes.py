"""Entries of the audit log in words: what differs between before and after."""

from __future__ import annotations

import json
from typing import Any


def change_in_words(details: dict[str, Any]) -> str:
    """What differs between before and after; of an entry without them, its details."""
    if "after" not in details:
        return ", ".join(f"{name} {value}" for name, value in details.items() if value is not None)
    before, after = details.get("before"), details["after"]
    named = [str(details["user"])] if "user" in details else []
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return "; ".join([*named, f"{_short(before)} → {_short(after)}"])
    changed = [key for key in after if before.get(key) != after[key]]
    return "; ".join([*named, *(f"{key}: {_short(before.get(key))} → {_short(after[key])}" for key in changed)])


def _short(value: Any) -> str:
    text = "nothing" if value is None else value if isinstance(value, str) else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."

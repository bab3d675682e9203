"""What a row is: its goal, its time, and what came of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from benchmarks.chaos.stack import Stack


@dataclass(frozen=True)
class Measured:
    """What a row saw: in words for the table, whether the goal is reached, and the figures behind it."""

    says: str
    ok: bool
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One fault under load."""

    name: str
    goal: str
    seconds: float
    """How long it lasts by default, without what it needs to settle."""
    measure: Callable[[Stack, float], Measured]

"""What may be forgotten: answers and feedback older than somebody wants to keep."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from domains.registry.registry import Registry
from orchestrator.settings import Settings


def prune(*, registry: Registry, settings: Settings, days: float | None = None) -> int:
    """Delete answers and feedback older than ``days``, by default the setting's; returns how many rows.

    Raises:
        ValueError: neither the caller nor the setting names a number of days.
    """
    days = settings.keep_predictions_days if days is None else days
    if days <= 0:
        raise ValueError("say how many days of answers to keep: --days, or the setting GRAFT_KEEP_PREDICTIONS_DAYS")
    return registry.forget_answers(datetime.now(UTC) - timedelta(days=days))

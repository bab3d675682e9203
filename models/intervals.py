"""How sure one can be of a metric: intervals from resampled users, paired differences, spread over seeds.

Users are drawn again with replacement, never rows: rows of one user are alike, and a row bootstrap would be too sure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike
from pydantic import BeforeValidator
from scipy.special import stdtrit

from models.metrics import Array, Metric, codes, under_user_weights

_ENTRIES_AT_ONCE = 4_000_000


Measured = Annotated[float, BeforeValidator(lambda found: math.nan if found is None else found)]
"""A number that may not be defined, as a metric of users who have one label each: NaN here, null in the registry."""


@dataclass(frozen=True)
class Interval:
    """A metric's value on all rows and the bounds between which it would fall with other users or seeds."""

    value: Measured
    low: Measured
    high: Measured

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


def bootstrap_interval(
    metric: Metric,
    *,
    label: ArrayLike,
    score: ArrayLike,
    user: ArrayLike,
    draws: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of ``metric`` when users are drawn again with replacement.

    Args:
        label, score, user: (N,) each.
    """
    code = codes(user, len(np.asarray(label)))
    resampled = under_user_weights(metric, label, score, code)
    low, high = _bounds(_in_draws(resampled, code, draws, seed)[:, 0], confidence)
    return Interval(metric(label, score, user), low, high)


def paired_difference(
    metric: Metric,
    label: ArrayLike,
    score_a: ArrayLike,
    score_b: ArrayLike,
    user: ArrayLike,
    *,
    draws: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
) -> Interval:
    """Interval of metric(a) - metric(b) where both models score the same rows and every draw takes the same users."""
    code = codes(user, len(np.asarray(label)))
    first, second = (under_user_weights(metric, label, score, code) for score in (score_a, score_b))
    drawn = _in_draws(lambda users: np.stack([first(users), second(users)], 1), code, draws, seed)
    low, high = _bounds(drawn[:, 0] - drawn[:, 1], confidence)
    return Interval(metric(label, score_a, user) - metric(label, score_b, user), low, high)


def seed_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean over seeds. One seed says nothing of the spread: its bounds are NaN."""
    v = np.asarray(values, dtype=np.float64)
    mean = float(v.mean())
    if len(v) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stdtrit(len(v) - 1, (1 + confidence) / 2) * v.std(ddof=1) / np.sqrt(len(v)))
    return Interval(mean, mean - half, mean + half)


def surely_lower(loss: ArrayLike, other: ArrayLike, user: ArrayLike) -> bool:
    """Whether the mean of ``loss`` lies below that of ``other``, of the same rows, by more than a standard error
    over users."""
    gap = np.asarray(other, np.float64) - np.asarray(loss, np.float64)
    left = np.bincount(codes(user, len(gap)), weights=gap - gap.mean())
    return bool(gap.mean() > np.sqrt(np.square(left).sum()) / len(gap))


def _in_draws(metric_of: Callable[[Array], Array], code: Array, draws: int, seed: int) -> Array:
    """Values (draws, models), in chunks that keep draws x rows bounded."""
    users = int(code.max()) + 1
    rng = np.random.default_rng(seed)
    at_once = max(1, _ENTRIES_AT_ONCE // max(len(code), 1))
    parts = []
    for begin in range(0, draws, at_once):
        size = min(at_once, draws - begin)
        drawn = rng.multinomial(users, np.full(users, 1 / users), size=size).astype(np.float64)
        parts.append(metric_of(drawn).reshape(size, -1))
    return np.concatenate(parts)


def _bounds(values: Array, confidence: float) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)

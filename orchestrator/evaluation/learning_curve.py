"""Learning curves: a power law fitted to errors at growing amounts of data, extrapolated with intervals.

An error with n training rows is taken as L(n) = a + b n^-c with b >= 0. Few points cannot tell a, b and c apart, so no
single curve is drawn: every draw resamples the users of the evaluation rows, takes an exponent by how well it fits, and
solves for a and b. What the draws disagree about is the interval.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from models.intervals import Interval
from models.metrics import Metric, under_user_weights
from orchestrator.evaluation.preview_report import ForecastCheck, RowsNeeded

EXPONENTS = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.65, 0.8, 1.0, 1.25])
FAR = 100.0
"""Data beyond this multiple of what there is counts as out of reach."""
DRAWS_AT_ONCE = 100
"""Draws that are measured together: each holds a number for every row."""
BOUNDS = (0.025, 0.5, 0.975)


def user_weights(fold: np.ndarray, *, draws: int, seed: int) -> np.ndarray:
    """How often each user counts in each draw, (draws, U): folds are drawn again, then the users within them.

    Each fold was evaluated by a training run of its own, so drawing folds lets the runs' own chance count too. ``fold``
    is (U,) int, the fold of each user.
    """
    random = np.random.default_rng(seed)
    folds = np.unique(fold)
    weight = np.zeros((draws, len(fold)))
    members = [np.flatnonzero(fold == number) for number in folds]
    for draw in range(draws):
        for chosen in random.integers(0, len(folds), len(folds)):
            who = members[chosen]
            weight[draw, who] += np.bincount(random.integers(0, len(who), len(who)), minlength=len(who))
    return weight


@dataclass(frozen=True)
class Judged:
    """Rows that models are measured on by one metric.

    Shapes (N rows, U users): ``label`` (N,); ``person`` (N,) each row's user; ``fold`` (U,) each user's fold.
    """

    metric: Metric
    label: np.ndarray
    person: np.ndarray
    fold: np.ndarray

    def errors(self, score: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """The metric of each column of ``score`` (N, P) under user weights (draws, U), as (draws, P); lower is better.

        A metric of which more is better is taken from 1. It is one of order, and each fold was scored by a network of
        its own: rows are put in order within a fold, and folds count by their rows.
        """
        if not self.metric.greater_is_better:
            return self._values(score, weight, np.arange(len(self.fold)))[0]
        parts = [self._values(score, weight, np.flatnonzero(self.fold == number)) for number in np.unique(self.fold)]
        known = [np.isfinite(value) * rows[:, None] for value, rows in parts]
        total = sum(np.nan_to_num(value) * rows for (value, _), rows in zip(parts, known, strict=True))
        return 1 - np.divide(total, sum(known), out=np.full(np.shape(total), np.nan), where=np.asarray(sum(known)) > 0)

    def _values(self, score: np.ndarray, weight: np.ndarray, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The metric of some users' rows, (draws, P), and how many rows each draw has of them, (draws,)."""
        at = np.isin(self.person, users)
        code, weight = np.searchsorted(users, self.person[at]), weight[:, users]
        columns = [under_user_weights(self.metric, self.label[at], column[at], code) for column in score.T]
        begin = range(0, len(weight), DRAWS_AT_ONCE)
        values = [np.stack([column(weight[first : first + DRAWS_AT_ONCE]) for column in columns], 1) for first in begin]
        return np.concatenate(values), weight @ np.bincount(code, minlength=len(users))


@dataclass(frozen=True)
class Curves:
    """Scores of models at growing data: ``rows`` (P,) are training rows, ``scores[model]`` (N, P)."""

    rows: np.ndarray
    scores: Mapping[str, np.ndarray]
    judged: Judged
    _drawn: dict[tuple[str, int, int], np.ndarray] = field(default_factory=dict, compare=False)

    def errors(self, model: str, *, draws: int, seed: int) -> np.ndarray:
        """Errors in each draw of users, (draws, P)."""
        key = (model, draws, seed)
        if key not in self._drawn:
            weight = user_weights(self.judged.fold, draws=draws, seed=seed)
            self._drawn[key] = self.judged.errors(self.scores[model], weight)
        return self._drawn[key]

    def over_all(self, model: str) -> np.ndarray:
        """Errors over all users, (P,)."""
        return self.judged.errors(self.scores[model], np.ones((1, len(self.judged.fold))))[0]


def power_laws(rows: np.ndarray, errors: np.ndarray, *, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One curve for each draw of errors (draws, P) at ``rows`` (P,): a, b and c, each (draws,).

    A draw's exponent is sampled by its likelihood, as residuals about the best curve of the mean errors suggest it.
    """
    a, b, misfit = _solved(rows, errors)
    spread = max(float(_solved(rows, errors.mean(0, keepdims=True))[2].min()) / max(len(rows) - 2, 1), 1e-10)
    log_likelihood = -misfit / (2 * spread)
    random = np.random.default_rng(seed)
    # The largest of log-likelihood plus Gumbel noise is a sample by likelihood.
    chosen = (log_likelihood + random.gumbel(size=log_likelihood.shape)).argmax(1)
    at = np.arange(len(errors))
    return a[at, chosen], b[at, chosen], EXPONENTS[chosen]


def gains(
    curves: Curves,
    model: str,
    baseline: str,
    at: np.ndarray,
    *,
    points: int | None = None,
    draws: int = 400,
    seed: int = 0,
) -> np.ndarray:
    """By how much ``model`` is forecast to err less than ``baseline`` at ``at`` (Q,) training rows, (draws, Q).

    ``points`` fits only the first so many, as if the rest were still to come.
    """
    points = len(curves.rows) if points is None else points
    forecast = []
    for number, name in enumerate((baseline, model)):
        a, b, c = power_laws(
            curves.rows[:points], curves.errors(name, draws=draws, seed=seed)[:, :points], seed=seed + number
        )
        forecast.append(a[:, None] + b[:, None] * np.asarray(at, np.float64)[None] ** -c[:, None])
    return forecast[0] - forecast[1]


def rows_needed(curves: Curves, model: str, baseline: str, *, draws: int = 400, seed: int = 0) -> RowsNeeded:
    """How many training rows until ``model`` errs less than ``baseline``: the middle draw and the 95 % interval.

    None is out of reach: more than ``FAR`` times what there is. The smallest amount measured stands for "that or less".
    ``certain`` is the share of draws in which the model is ahead with all the data there is.
    """
    first, last = float(curves.rows[0]), float(curves.rows[-1])
    at = np.unique(np.append(np.geomspace(first, FAR * last, 120), last))
    gain = gains(curves, model, baseline, at, draws=draws, seed=seed)
    # Ahead with all there is: since when without a break. Not yet ahead: the first amount beyond at which it will be.
    today = int(np.searchsorted(at, last))
    here = gain[:, today]
    since = np.flip(np.logical_and.accumulate(np.flip(gain[:, : today + 1] > 0, 1), axis=1), 1).argmax(1)
    later = gain[:, today:] > 0
    first_later = np.where(later.any(1), at[today + later.argmax(1)], np.inf)
    low, middle, high = np.quantile(np.where(here > 0, at[since], first_later), BOUNDS, method="nearest")
    certain = float((here > 0).mean())
    return RowsNeeded(rows=_reached(middle), low=_reached(low), high=_reached(high), certain=certain)


def backtest(
    curves: Curves, model: str, baselines: Iterable[str], *, fewest: int = 3, seed: int = 0
) -> list[ForecastCheck]:
    """Forecasts from the first points of what came after: each with its interval, what was seen, and if it held."""
    checks = []
    for baseline in baselines:
        seen = curves.over_all(baseline) - curves.over_all(model)
        for points in range(fewest, len(curves.rows)):
            drawn = gains(curves, model, baseline, curves.rows[points:], points=points, seed=seed)
            for point, (low, middle, high) in enumerate(np.quantile(drawn, BOUNDS, axis=0).T, points):
                checks.append(
                    ForecastCheck(
                        baseline=baseline,
                        known_rows=float(curves.rows[points - 1]),
                        rows=float(curves.rows[point]),
                        forecast=Interval(float(middle), float(low), float(high)),
                        seen=float(seen[point]),
                        held=bool(low <= seen[point] <= high),
                    )
                )
    return checks


def _solved(rows: np.ndarray, errors: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares of a and b for every exponent, and the squared misfit; each (draws, exponents)."""
    shape = np.asarray(rows, np.float64)[None] ** -EXPONENTS[:, None]
    centred = shape - shape.mean(1, keepdims=True)
    mean = errors.mean(1, keepdims=True)
    b = np.maximum((errors - mean) @ centred.T / np.square(centred).sum(1), 0.0)
    a = mean - b * shape.mean(1)
    misfit = np.square(errors[:, None] - a[:, :, None] - b[:, :, None] * shape[None]).sum(2)
    return a, b, misfit


def _reached(rows: float) -> float | None:
    return float(rows) if np.isfinite(rows) else None

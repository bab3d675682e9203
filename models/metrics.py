"""How good scores are: click-through and rating metrics, and the table that says how each is to be read.

Every metric takes ``label`` and ``score`` of the same rows as one-dimensional arrays and returns a float. A metric that
the rows do not define (an AUC with one class) is NaN. Intervals over users are in ``models.intervals``, metrics of
ranked candidates in ``models.ranking_metrics``.

    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[Any]
Task = Literal["ctr", "rating", "ranking"]
MetricFunction = Callable[..., float]

LOGLOSS_CLIP = 1e-7


def auc(label: ArrayLike, score: ArrayLike) -> float:
    """P(score of a positive > score of a negative) + P(equal) / 2."""
    y, s = _rows(label, score, binary=True)
    return float(_Auc(y, s).of(np.ones((1, len(y))))[0])


def gauc(label: ArrayLike, score: ArrayLike, user: ArrayLike) -> float:
    """AUC within each user, averaged with the user's rows as weight, over users who have both labels."""
    y, s = _rows(label, score, binary=True)
    return _ratio(_gauc_sums(y, s, codes(user, len(y))))


def gauc_coverage(label: ArrayLike, user: ArrayLike) -> float:
    """Share of rows that GAUC speaks of: those of users who have both labels."""
    y = np.asarray(label, dtype=np.float64)
    code = codes(user, len(y))
    rows, positives = np.bincount(code), np.bincount(code, weights=y)
    return float(rows[(positives > 0) & (positives < rows)].sum() / max(len(y), 1))


def logloss(label: ArrayLike, score: ArrayLike) -> float:
    """Mean binary cross-entropy of probabilities, clipped to [1e-7, 1 - 1e-7]."""
    return _ratio(_logloss_sums(*_rows(label, score, binary=True)))


def mae(label: ArrayLike, score: ArrayLike) -> float:
    """Mean absolute error, in the label's unit."""
    return _ratio(_mae_sums(*_rows(label, score)))


def rmse(label: ArrayLike, score: ArrayLike) -> float:
    """Root of the mean squared error, in the label's unit."""
    return _ratio(_rmse_sums(*_rows(label, score))) ** 0.5


def pcoc(label: ArrayLike, score: ArrayLike) -> float:
    """Predicted clicks over clicks: 1 is calibrated on average, above 1 promises too much."""
    return _ratio(_pcoc_sums(*_rows(label, score)))


def ece(label: ArrayLike, score: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: the sum over bins of share x |mean score - mean label|, equal scores in one bin.

    Bins are of equal mass because click rates of a few percent would all fall into one bin of equal width.
    """
    y, s = _rows(label, score)
    if not len(y):
        return float("nan")
    return float(_ece_finish(_ece_sums(y, s, bins).sum(0)[None])[0])


def mean_gain(label: ArrayLike, score: ArrayLike) -> float:
    """Mean of scores that are gains themselves, such as the reciprocal rank of each query."""
    return _ratio(_gain_sums(*_rows(label, score)))


def row_losses(task: Literal["ctr", "rating"], label: ArrayLike, score: ArrayLike) -> Array:
    """What each row loses, (N,): cross-entropy of probabilities, squared error of ratings."""
    y, s = _rows(label, score)
    return _logloss_sums(y, s)[:, 0] if task == "ctr" else np.square(y - s)


@dataclass(frozen=True)
class Metric:
    """One metric that models are compared by.

    Attributes:
        name: its key in specs, reports and results.
        label: what people read.
        function: of (label, score), or of (label, score, user) where ``per_user``; in the task ``ranking`` a row is a
            query and its score the gain of its rank (``models.ranking_metrics``).
        tasks: the tasks whose reports carry it.
    """

    name: str
    label: str
    function: MetricFunction
    greater_is_better: bool
    per_user: bool
    tasks: tuple[Task, ...]

    def __call__(self, label: ArrayLike, score: ArrayLike, user: ArrayLike) -> float:
        return float(self.function(label, score, *([user] if self.per_user else [])))

    @property
    def sign(self) -> float:
        """1 where greater is better, -1 where less is: a difference times it is an improvement."""
        return 1.0 if self.greater_is_better else -1.0

    @property
    def heading(self) -> str:
        """The label with an arrow that points to where better is."""
        return f"{self.label} {'↑' if self.greater_is_better else '↓'}"


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("auc", "AUC", auc, greater_is_better=True, per_user=False, tasks=("ctr",)),
        Metric("gauc", "GAUC", gauc, greater_is_better=True, per_user=True, tasks=("ctr",)),
        Metric("logloss", "log loss", logloss, greater_is_better=False, per_user=False, tasks=("ctr",)),
        Metric("mae", "MAE", mae, greater_is_better=False, per_user=False, tasks=("rating",)),
        Metric("rmse", "RMSE", rmse, greater_is_better=False, per_user=False, tasks=("rating",)),
        Metric("mrr", "MRR", mean_gain, greater_is_better=True, per_user=False, tasks=("ranking",)),
        Metric("ndcg@10", "NDCG@10", mean_gain, greater_is_better=True, per_user=False, tasks=("ranking",)),
        Metric("hit@10", "hit rate@10", mean_gain, greater_is_better=True, per_user=False, tasks=("ranking",)),
    )
}
"""Which metrics there are, in the order of a report's columns. A new one is added here and to ``domains.spec``.

Calibration (``pcoc``, ``ece``) is not among them: a constant score is calibrated, so it compares no models.
"""


def metrics_of(task: str) -> list[Metric]:
    """The metrics that a report of this task carries."""
    return [metric for metric in METRICS.values() if task in metric.tasks]


def summary(task: Literal["ctr", "rating"], label: ArrayLike, score: ArrayLike, user: ArrayLike) -> dict[str, float]:
    """The usual row of a results table: probabilities in for ``ctr``, ratings for ``rating``."""
    found = {metric.name: metric(label, score, user) for metric in metrics_of(task)}
    if task == "ctr":
        found |= {
            "gauc_coverage": gauc_coverage(label, user),
            "pcoc": pcoc(label, score),
            "ece": ece(label, score),
        }
    return found | {"rows": float(len(np.asarray(label)))}


def under_user_weights(metric: Metric, label: ArrayLike, score: ArrayLike, code: Array) -> Callable[[Array], Array]:
    """A function from how often each user counts, (draws, users), to the metric, (draws,).

    Sums per user are made once, and each draw weighs them; a function that is not of this module is computed anew on
    the repeated rows of each draw.

    Args:
        code: (N,) each row's user as a number from 0.
    """
    function = metric.function
    y, s = _rows(label, score, binary=function in (auc, gauc, logloss))
    if function is auc:
        sorted_rows = _Auc(y, s)
        return lambda drawn: sorted_rows.of(drawn[:, code])
    if function is gauc:
        total = _gauc_sums(y, s, code)
    elif function in _ROW_SUMS:
        users = int(code.max()) + 1 if len(code) else 0
        sums = _ROW_SUMS[function](y, s)
        total = np.stack([np.bincount(code, weights=column, minlength=users) for column in sums.T], 1)
    else:
        return lambda drawn: np.array([_on_repeated_rows(metric, y, s, code, times) for times in drawn])
    finish = _FINISH.get(function, _ratios)
    return lambda drawn: finish(drawn @ total)


def codes(group: ArrayLike, rows: int) -> Array:
    """Users or groups as numbers from 0, (N,).

    Raises:
        ValueError: not one a row.
    """
    values = np.asarray(group)
    if len(values) != rows:
        raise ValueError(f"{len(values)} users or groups for {rows} rows")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


class _Auc:
    """AUC of fixed rows under many row weightings: sorts once, then each weighting is a cumulative sum."""

    def __init__(self, label: Array, score: Array) -> None:
        self.order = np.argsort(score, kind="stable")
        ordered = score[self.order]
        self.positive = label[self.order] > 0
        self.first = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]]) if len(ordered) else np.zeros(0, int)

    def of(self, weight: Array) -> Array:
        """AUC under each row of ``weight`` (draws, rows); NaN where a class has no weight."""
        if not len(self.order):
            return np.full(len(weight), np.nan)
        w = weight[:, self.order]
        positive, negative = np.where(self.positive, w, 0.0), np.where(self.positive, 0.0, w)
        if len(self.first) < w.shape[1]:  # equal scores are one step of the curve
            positive = np.add.reduceat(positive, self.first, axis=1)
            negative = np.add.reduceat(negative, self.first, axis=1)
        below = np.cumsum(negative, axis=1)
        below -= negative / 2
        pairs = positive.sum(1) * negative.sum(1)
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(pairs > 0, np.einsum("ij,ij->i", positive, below) / pairs, np.nan)


# Sums per row or per user, from which a metric is a function of the column totals


def _logloss_sums(y: Array, p: Array) -> Array:
    p = np.clip(p, LOGLOSS_CLIP, 1 - LOGLOSS_CLIP)
    return np.stack([-(y * np.log(p) + (1 - y) * np.log1p(-p)), np.ones_like(y)], 1)


def _mae_sums(y: Array, s: Array) -> Array:
    return np.stack([np.abs(y - s), np.ones_like(y)], 1)


def _gain_sums(_: Array, s: Array) -> Array:
    return np.stack([s, np.ones(len(s))], 1)


def _rmse_sums(y: Array, s: Array) -> Array:
    return np.stack([(y - s) ** 2, np.ones_like(y)], 1)


def _pcoc_sums(y: Array, s: Array) -> Array:
    return np.stack([s, y], 1)


def _ece_sums(y: Array, s: Array, bins: int = 10) -> Array:
    ordered = np.sort(s)
    edges = np.unique(ordered[(np.arange(1, bins) * len(s)) // bins])
    bin_of = np.searchsorted(edges, s, side="right")
    sums = np.zeros((len(s), 2 * bins))
    sums[np.arange(len(s)), bin_of] = s - y
    sums[np.arange(len(s)), bins + bin_of] = 1
    return sums


def _ece_finish(total: Array) -> Array:
    gap, rows = np.split(total, 2, axis=1)
    return np.abs(gap).sum(1) / rows.sum(1)


def _gauc_sums(y: Array, s: Array, code: Array) -> Array:
    """(users, 2) of [rows x AUC, rows] of users with both labels, zeros elsewhere."""
    count = int(code.max()) + 1 if len(code) else 0
    order = np.lexsort((s, code))
    c, ordered, positive = code[order], s[order], y[order] > 0
    new_user = np.r_[True, c[1:] != c[:-1]]
    first = np.flatnonzero(new_user | np.r_[True, ordered[1:] != ordered[:-1]])
    pos = np.add.reduceat(positive.astype(np.float64), first) if len(first) else np.zeros(0)
    neg = np.add.reduceat((~positive).astype(np.float64), first) if len(first) else np.zeros(0)
    tie_user = c[first]
    positives, negatives = (np.bincount(tie_user, weights=v, minlength=count) for v in (pos, neg))
    negatives_of_users_before = np.r_[0.0, np.cumsum(negatives)[:-1]] if count else np.zeros(0)
    below = np.cumsum(neg) - neg / 2 - negatives_of_users_before[tie_user]
    wins = np.bincount(tie_user, weights=pos * below, minlength=count)
    pairs, rows = positives * negatives, positives + negatives
    both = pairs > 0
    value = np.divide(wins, pairs, out=np.zeros(count), where=both)
    return np.stack([np.where(both, rows * value, 0.0), np.where(both, rows, 0.0)], 1)


def _ratio(sums: Array) -> float:
    return float(_ratios(sums.sum(0)[None])[0])


def _ratios(total: Array) -> Array:
    return np.divide(total[:, 0], total[:, 1], out=np.full(len(total), np.nan), where=total[:, 1] != 0)


def _on_repeated_rows(metric: Metric, y: Array, s: Array, code: Array, times: Array) -> float:
    rows = np.repeat(np.arange(len(y)), times[code].astype(np.int64))
    return metric(y[rows], s[rows], code[rows])


def _rows(label: ArrayLike, score: ArrayLike, *, binary: bool = False) -> tuple[Array, Array]:
    y, s = np.asarray(label, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if y.shape != s.shape or y.ndim != 1:
        raise ValueError(f"labels {y.shape} and scores {s.shape} must be one-dimensional and of one length")
    if not np.isfinite(s).all():
        raise ValueError(f"{int((~np.isfinite(s)).sum())} of {len(s)} scores are not finite")
    if binary and not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    return y, s


_ROW_SUMS: dict[MetricFunction, Callable[[Array, Array], Array]] = {
    logloss: _logloss_sums,
    mae: _mae_sums,
    mean_gain: _gain_sums,
    rmse: _rmse_sums,
    pcoc: _pcoc_sums,
    ece: _ece_sums,
}
_FINISH: dict[MetricFunction, Callable[[Array], Array]] = {
    ece: _ece_finish,
    rmse: lambda total: np.sqrt(_ratios(total)),
}

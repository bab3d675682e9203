"""How good scores are, and how sure one can be of it.

Every metric takes ``label`` and ``score`` of the same rows as one-dimensional arrays and returns a float; higher is
better for ranking metrics, lower for errors. A metric that the rows do not define (an AUC with one class) is NaN.

Intervals come from resampling users, never rows: rows of one user are alike, and a row bootstrap would be too sure.

    >>> auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

Array = NDArray[Any]
Metric = Callable[..., float]

LOGLOSS_CLIP = 1e-7
_CELLS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class Interval:
    """A metric's value on all rows and the bounds between which it would fall with other users or seeds."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}


# Metrics of single rows


def auc(label: ArrayLike, score: ArrayLike, weight: ArrayLike | None = None) -> float:
    """P(score of a positive > score of a negative) + P(equal) / 2, over weighted rows."""
    y, s = _rows(label, score, binary=True)
    w = np.ones(len(y)) if weight is None else np.asarray(weight, dtype=np.float64)
    return float(_Auc(y, s).of(w[None])[0])


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
    """Predicted over observed click rate: 1 is calibrated on average, above 1 promises too much."""
    return _ratio(_pcoc_sums(*_rows(label, score)))


def ece(label: ArrayLike, score: ArrayLike, bins: int = 10) -> float:
    """Expected calibration error: mean |predicted - observed| over bins of equal mass, equal scores in one bin.

    Bins are of equal mass because click rates of a few percent would all fall into one bin of equal width.
    """
    y, s = _rows(label, score)
    if not len(y):
        return float("nan")
    return float(_ece_finish(_ece_sums(y, s, bins).sum(0)[None])[0])


# Metrics of lists


def gauc(label: ArrayLike, score: ArrayLike, user: ArrayLike) -> float:
    """AUC within each user, averaged with the user's rows as weight, over users who have both labels."""
    y, s = _rows(label, score, binary=True)
    sums, _ = _gauc_sums(y, s, _codes(user, len(y)))
    return _ratio(sums)


def gauc_coverage(label: ArrayLike, user: ArrayLike) -> float:
    """Share of rows that GAUC speaks of: those of users who have both labels."""
    y = np.asarray(label, dtype=np.float64)
    code = _codes(user, len(y))
    rows, positives = np.bincount(code), np.bincount(code, weights=y)
    return float(rows[(positives > 0) & (positives < rows)].sum() / max(len(y), 1))


def ndcg_at(label: ArrayLike, score: ArrayLike, group: ArrayLike, k: int = 10) -> float:
    """NDCG of the first k, gain = label, mean over lists with anything relevant; equal scores share their discounts."""
    return _list_mean(_ndcg_values, label, score, group, k)


def hit_rate_at(label: ArrayLike, score: ArrayLike, group: ArrayLike, k: int = 10) -> float:
    """Share of lists whose first k hold a relevant item; equal scores count by the chance of a random order."""
    return _list_mean(_hit_values, label, score, group, k)


def mrr(label: ArrayLike, score: ArrayLike, group: ArrayLike) -> float:
    """Mean reciprocal rank of the first relevant item; equal scores count by the mean over their random orders."""
    return _list_mean(_mrr_values, label, score, group, None)


def mean_score(label: ArrayLike, score: ArrayLike) -> float:
    """Mean of the scores, where they are themselves what a row is worth, such as the reciprocal rank of a question."""
    return _ratio(_score_sums(*_rows(label, score)))


# Intervals


def bootstrap_interval(
    metric: Metric,
    *,
    label: ArrayLike,
    score: ArrayLike,
    user: ArrayLike,
    group: ArrayLike | None = None,
    draws: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    **options: Any,
) -> Interval:
    """Percentile interval of ``metric`` when users are drawn again with replacement.

    Args:
        metric: a function of this module, or any ``metric(label, score, **options)``, which is slower.
        group: the list each row belongs to, for list metrics; users where not given. A list belongs to one user.
        options: passed on to the metric, e.g. ``k``.
    """
    code = _codes(user, len(np.asarray(label)))
    resampled = _resampled(metric, label, score, code, group, options)
    low, high = _bounds(_in_draws(resampled, code, draws, seed)[:, 0], confidence)
    return Interval(_whole(metric, label, score, user, group, options), low, high)


def paired_difference(
    metric: Metric,
    label: ArrayLike,
    score_a: ArrayLike,
    score_b: ArrayLike,
    user: ArrayLike,
    *,
    group: ArrayLike | None = None,
    draws: int = 1000,
    seed: int = 0,
    confidence: float = 0.95,
    **options: Any,
) -> Interval:
    """Interval of metric(a) - metric(b) where both models score the same rows and every draw takes the same users."""
    code = _codes(user, len(np.asarray(label)))
    first = _resampled(metric, label, score_a, code, group, options)
    second = _resampled(metric, label, score_b, code, group, options)
    drawn = _in_draws(lambda users: np.stack([first(users), second(users)], 1), code, draws, seed)
    low, high = _bounds(drawn[:, 0] - drawn[:, 1], confidence)
    values = [_whole(metric, label, score, user, group, options) for score in (score_a, score_b)]
    return Interval(values[0] - values[1], low, high)


def seed_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Student's t interval of the mean over seeds. One seed says nothing of the spread: its bounds are NaN."""
    v = np.asarray(values, dtype=np.float64)
    mean = float(v.mean())
    if len(v) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stdtrit(len(v) - 1, (1 + confidence) / 2) * v.std(ddof=1) / np.sqrt(len(v)))
    return Interval(mean, mean - half, mean + half)


def row_losses(task: Literal["ctr", "rating"], label: ArrayLike, score: ArrayLike) -> Array:
    """What each row loses, (N,): cross-entropy of probabilities, squared error of ratings."""
    y, s = _rows(label, score)
    return _logloss_sums(y, s)[:, 0] if task == "ctr" else np.square(y - s)


def surely_lower(loss: ArrayLike, other: ArrayLike, user: ArrayLike) -> bool:
    """Whether the same rows lose less than they did, by more than a standard error over users."""
    gap = np.asarray(other, np.float64) - np.asarray(loss, np.float64)
    code = _codes(user, len(gap))
    left = np.bincount(code, weights=gap - gap.mean())
    return bool(gap.mean() > np.sqrt(np.square(left).sum()) / len(gap))


def summary(task: Literal["ctr", "rating"], label: ArrayLike, score: ArrayLike, user: ArrayLike) -> dict[str, float]:
    """The usual row of a results table: probabilities in for ``ctr``, ratings for ``rating``."""
    if task == "rating":
        return {"mae": mae(label, score), "rmse": rmse(label, score), "rows": float(len(np.asarray(label)))}
    return {
        "auc": auc(label, score),
        "gauc": gauc(label, score, user),
        "gauc_coverage": gauc_coverage(label, user),
        "logloss": logloss(label, score),
        "pcoc": pcoc(label, score),
        "ece": ece(label, score),
        "rows": float(len(np.asarray(label))),
    }


# Weighted AUC of many weightings at once


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


# Sums per row or per list, from which a metric is a function of the column totals


def _logloss_sums(y: Array, p: Array) -> Array:
    p = np.clip(p, LOGLOSS_CLIP, 1 - LOGLOSS_CLIP)
    return np.stack([-(y * np.log(p) + (1 - y) * np.log1p(-p)), np.ones_like(y)], 1)


def _mae_sums(y: Array, s: Array) -> Array:
    return np.stack([np.abs(y - s), np.ones_like(y)], 1)


def _score_sums(y: Array, s: Array) -> Array:
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


def _gauc_sums(y: Array, s: Array, code: Array) -> tuple[Array, Array]:
    """(lists, 2) of [rows x AUC, rows] over lists with both labels, zeros elsewhere; and each list's number."""
    count = int(code.max()) + 1 if len(code) else 0
    order = np.lexsort((s, code))
    c, ordered, positive = code[order], s[order], y[order] > 0
    new_list = np.r_[True, c[1:] != c[:-1]]
    first = np.flatnonzero(new_list | np.r_[True, ordered[1:] != ordered[:-1]])
    pos = np.add.reduceat(positive.astype(np.float64), first) if len(first) else np.zeros(0)
    neg = np.add.reduceat((~positive).astype(np.float64), first) if len(first) else np.zeros(0)
    tie_list = c[first]
    positives, negatives = (np.bincount(tie_list, weights=v, minlength=count) for v in (pos, neg))
    negatives_of_lists_before = np.r_[0.0, np.cumsum(negatives)[:-1]] if count else np.zeros(0)
    below = np.cumsum(neg) - neg / 2 - negatives_of_lists_before[tie_list]
    wins = np.bincount(tie_list, weights=pos * below, minlength=count)
    pairs, rows = positives * negatives, positives + negatives
    both = pairs > 0
    value = np.divide(wins, pairs, out=np.zeros(count), where=both)
    return np.stack([np.where(both, rows * value, 0.0), np.where(both, rows, 0.0)], 1), np.arange(count)


class _Lists:
    """Rows sorted by list, best first, and cut into runs of equal score."""

    def __init__(self, y: Array, s: Array, code: Array) -> None:
        order = np.lexsort((-s, code))
        self.code, self.label = code[order], y[order]
        ordered = s[order]
        new_list = np.r_[True, self.code[1:] != self.code[:-1]]
        self.list_start = np.flatnonzero(new_list)
        first = np.flatnonzero(new_list | np.r_[True, ordered[1:] != ordered[:-1]])
        self.run_list = np.cumsum(new_list)[first] - 1
        self.run_size = np.diff(np.r_[first, len(order)])
        self.run_begin = first - self.list_start[self.run_list]  # rank of the run's best place, from 0
        self.run_gain = np.add.reduceat(self.label, first)
        self.run_relevant = np.add.reduceat((self.label > 0).astype(np.int64), first)
        self.names = self.code[self.list_start]
        self.list_size = np.diff(np.r_[self.list_start, len(order)])

    def first_relevant(self) -> tuple[Array, Array]:
        """The first run with a relevant row in each list that has one, and those lists."""
        runs = np.flatnonzero(self.run_relevant > 0)
        lists, at = np.unique(self.run_list[runs], return_index=True)
        return runs[at], lists


def _ndcg_values(lists: _Lists, k: int | None) -> tuple[Array, Array]:
    k = int(k or lists.list_size.max())
    discount = np.r_[0.0, np.cumsum(1 / np.log2(np.arange(2, k + 2)))]
    begin, end = np.minimum(lists.run_begin, k), np.minimum(lists.run_begin + lists.run_size, k)
    gained = lists.run_gain * (discount[end] - discount[begin]) / lists.run_size
    dcg = np.bincount(lists.run_list, weights=gained, minlength=len(lists.names))
    best = np.lexsort((-lists.label, lists.code))
    place = np.arange(len(best)) - np.repeat(lists.list_start, lists.list_size)
    gains = np.where(place < k, lists.label[best] / np.log2(place + 2), 0.0)
    ideal = np.add.reduceat(gains, lists.list_start)
    return np.divide(dcg, ideal, out=np.full(len(dcg), np.nan), where=ideal > 0), lists.names


def _hit_values(lists: _Lists, k: int | None) -> tuple[Array, Array]:
    runs, of = lists.first_relevant()
    size, relevant = lists.run_size[runs], lists.run_relevant[runs]
    places = np.clip((k or 1) - lists.run_begin[runs], 0, size)
    missed = np.ones(len(runs))
    for drawn in range(int(places.max(initial=0))):  # chance that no relevant row of the run is among its first places
        here = drawn < places
        missed[here] *= np.maximum(size[here] - relevant[here] - drawn, 0) / (size[here] - drawn)
    value = np.full(len(lists.names), np.nan)
    value[of] = 1 - missed
    return value, lists.names


def _mrr_values(lists: _Lists, k: int | None) -> tuple[Array, Array]:
    runs, of = lists.first_relevant()
    size, relevant, begin = lists.run_size[runs], lists.run_relevant[runs], lists.run_begin[runs]
    mean, none_yet = np.zeros(len(runs)), np.ones(len(runs))
    for place in range(int((size - relevant).max(initial=0)) + 1):
        here = np.where(place < size, relevant / np.maximum(size - place, 1), 0.0)
        mean += none_yet * np.minimum(here, 1.0) / (begin + place + 1)
        none_yet *= 1 - np.minimum(here, 1.0)
    value = np.full(len(lists.names), np.nan)
    value[of] = mean
    return value, lists.names


_ListValues = Callable[[_Lists, int | None], tuple[Array, Array]]


def _list_mean(values: _ListValues, label: ArrayLike, score: ArrayLike, group: ArrayLike, k: int | None) -> float:
    y, s = _rows(label, score)
    if not len(y):
        return float("nan")
    value, _ = values(_Lists(y, s, _codes(group, len(y))), k)
    return float(np.nanmean(value)) if np.isfinite(value).any() else float("nan")


# Resampling

_ROW_SUMS: dict[Any, Callable[..., Array]] = {
    logloss: _logloss_sums,
    mae: _mae_sums,
    mean_score: _score_sums,
    rmse: _rmse_sums,
    pcoc: _pcoc_sums,
    ece: _ece_sums,
}
_LIST_VALUES: dict[Any, _ListValues] = {ndcg_at: _ndcg_values, hit_rate_at: _hit_values, mrr: _mrr_values}


def _resampled(
    metric: Metric, label: ArrayLike, score: ArrayLike, code: Array, group: ArrayLike | None, options: dict[str, Any]
) -> Callable[[Array], Array]:
    """A function from how often each user was drawn, (draws, users), to the metric, (draws,)."""
    y, s = _rows(label, score, binary=metric in (auc, gauc, logloss))
    users = int(code.max()) + 1 if len(code) else 0
    if metric is auc:
        sorted_rows = _Auc(y, s)
        return lambda drawn: sorted_rows.of(drawn[:, code])
    if metric in _ROW_SUMS:
        total = _sum_by(code, _ROW_SUMS[metric](y, s, **options), users)
    elif metric is gauc or metric in _LIST_VALUES:
        of_list = code if group is None else _codes(group, len(y))
        if metric is gauc:
            sums, names = _gauc_sums(y, s, of_list)
        else:
            value, names = _LIST_VALUES[metric](_Lists(y, s, of_list), options.get("k", 10))
            sums = np.stack([np.nan_to_num(value), np.isfinite(value).astype(np.float64)], 1)
        owner = np.zeros(int(names.max()) + 1, dtype=np.int64)
        owner[of_list] = code
        total = _sum_by(owner[names], sums, users)
    else:
        return lambda drawn: np.array([_whole(metric, *_repeat(y, s, code, d, group), options) for d in drawn])
    finish: Callable[[Array], Array] = {ece: _ece_finish, rmse: lambda t: np.sqrt(_ratios(t))}.get(metric, _ratios)
    return lambda drawn: finish(drawn @ total)


def _repeat(
    y: Array, s: Array, code: Array, drawn: Array, group: ArrayLike | None
) -> tuple[Array, Array, Array, Array | None]:
    rows = np.repeat(np.arange(len(y)), drawn[code].astype(np.int64))
    return y[rows], s[rows], code[rows], None if group is None else np.asarray(group)[rows]


def _in_draws(metric_of: Callable[[Array], Array], code: Array, draws: int, seed: int) -> Array:
    """Values (draws, models), in chunks that keep draws x rows bounded."""
    users = int(code.max()) + 1
    rng = np.random.default_rng(seed)
    at_once = max(1, _CELLS_AT_ONCE // max(len(code), 1))
    parts = []
    for begin in range(0, draws, at_once):
        size = min(at_once, draws - begin)
        drawn = rng.multinomial(users, np.full(users, 1 / users), size=size).astype(np.float64)
        value = metric_of(drawn)
        parts.append(value.reshape(size, -1))
    return np.concatenate(parts)


def _whole(
    metric: Metric,
    label: ArrayLike,
    score: ArrayLike,
    user: ArrayLike,
    group: ArrayLike | None,
    options: dict[str, Any],
) -> float:
    if metric is gauc or metric in _LIST_VALUES:
        return float(metric(label, score, user if group is None else group, **options))
    return float(metric(label, score, **options))


def _bounds(values: Array, confidence: float) -> tuple[float, float]:
    known = values[np.isfinite(values)]
    if not len(known):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _rows(label: ArrayLike, score: ArrayLike, *, binary: bool = False) -> tuple[Array, Array]:
    y, s = np.asarray(label, dtype=np.float64), np.asarray(score, dtype=np.float64)
    if y.shape != s.shape or y.ndim != 1:
        raise ValueError(f"labels {y.shape} and scores {s.shape} must be one-dimensional and of one length")
    if not np.isfinite(s).all():
        raise ValueError(f"{int((~np.isfinite(s)).sum())} of {len(s)} scores are not finite")
    if binary and not np.isin(y, (0, 1)).all():
        raise ValueError("labels must be 0 or 1")
    return y, s


def _codes(group: ArrayLike, rows: int) -> Array:
    values = np.asarray(group)
    if len(values) != rows:
        raise ValueError(f"{len(values)} users or groups for {rows} rows")
    return np.unique(values, return_inverse=True)[1].astype(np.int64)


def _sum_by(code: Array, sums: Array, size: int) -> Array:
    return np.stack([np.bincount(code, weights=column, minlength=size) for column in sums.T], 1)


def _ratio(sums: Array) -> float:
    return float(_ratios(sums.sum(0)[None])[0])


def _ratios(total: Array) -> Array:
    return np.divide(total[:, 0], total[:, 1], out=np.full(len(total), np.nan), where=total[:, 1] != 0)

"""Features that tell the label too well to have been known when the request came.

A gain by such a feature is no gain: the column was filled in after the click. What tells a feature from an honest one
is measured, one feature at a time, in ways that an honest one passes whatever it is worth:

* Alone and beside the biases of items and users, it orders held-out labels better than a column that is known
  beforehand does (``too_good``).
* Its change since the row before, of the same user, item or at all, or how far it lies from their average or from the
  row's time, tells the row's own label: a running count that holds the row itself, an average without it (``own_row``).
* What it leaves unexplained in an item's (or user's) earlier rows is made up for in the later ones
  (``own_rows.holds_own_labels``), or it is their count up to the end of the file (``own_rows.counts_the_future``): an
  aggregate that saw the rows it is judged on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from sklearn.linear_model import LinearRegression, LogisticRegression

from models.baselines.plain import ItemUserBias
from models.metrics import auc
from orchestrator.evaluation.own_rows import counts_the_future, holds_own_labels, ways_to_aggregate

MOST_ROWS = 60_000
"""Rows to learn from, and half as many to measure on, at most; a draw of them where there are more."""
FEWEST_ROWS = 50
MOST_VALUES = 256
"""Numbers with more values than this are cut into bins."""
STRENGTH = 20.0
"""Rows at the mean that each value, item and user is assumed to have."""
BEST_ALONE = 0.78
"""AUC of one column alone; with ``MOST_OF_THE_WAY``, what label columns with a fifth of them flipped reach. Known
columns that were measured came to .77 (how often a user had been at a place before)."""
MOST_OF_THE_WAY = 0.5
"""Share of the way from the AUC of item and user biases to 1 that one column goes; known ones came to .58."""
MOST_OF_THE_ERROR = 0.2
"""Share of the mean absolute error of item and user biases that one column takes away; known ones came to .10."""
SURE_VALUES = (0.998, 0.1)
"""Positives among the rows of a column's best values, and the share of all positives that they hold."""
DAY_US = 86_400_000_000
A_TIME = 0.99
"""Correlation with the row's time from which a column counts as a time itself, in whatever unit."""
MOSTLY_POSITIVE = 0.8
"""Where this share of all rows is positive, values that always come with a positive are no wonder."""

Task = Literal["ctr", "rating"]
Of = Literal["item", "user", "context", "history"]


@dataclass(frozen=True)
class Feature:
    """One column, a value for each row: ``values`` (N,) float (NaN is missing) or object (text, None is missing).

    ``name`` is what a person vouches for it by, ``what`` says more.
    """

    name: str
    of: Of
    values: np.ndarray
    what: str = ""


@dataclass(frozen=True)
class JudgedRows:
    """The rows of a domain: ``user``, ``item``, ``label`` (N,), ``time_us`` (N,) or None.

    ``train`` are positions of rows that models learn from, ``held`` of later ones, or of cold users without time.
    """

    task: Task
    user: np.ndarray
    item: np.ndarray
    label: np.ndarray
    time_us: np.ndarray | None
    train: np.ndarray
    held: np.ndarray


def suspicions(rows: JudgedRows, features: list[Feature]) -> Iterator[tuple[Feature, str]]:
    """Each feature that knows too much, with how it is known, as the end of a sentence."""
    if len(rows.held) < FEWEST_ROWS or len(rows.train) < FEWEST_ROWS or np.ptp(rows.label[rows.train]) == 0:
        return
    measured = _ruler(rows)
    for feature in features:
        codes = value_codes(feature.values)
        if np.ptp(codes) == 0:
            continue
        why = too_good(measured, codes) or own_row(rows, measured, feature) or _aggregate(rows, feature)
        if why:
            yield feature, f"{feature.what}: {why}" if feature.what else why


def too_good(ruler: Ruler, codes: np.ndarray) -> str | None:
    """How one column tells held-out labels, where that is beyond what is plausible."""
    found = ruler.measure(codes)
    return found.said if found.implausible else None


def own_row(rows: JudgedRows, ruler: Ruler, feature: Feature) -> str | None:
    """By what comparison with other rows a column tells its row's own label, where its value alone does not."""
    if feature.of != "context" or feature.values.dtype.kind == "O":
        return None
    for what, compared in _compared(rows, feature.values):
        found = ruler.measure(value_codes(compared))
        if found.implausible:
            return f"{what} is the row's own label: {found.said}"
    return None


def _compared(rows: JudgedRows, values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """A column beside its group's rows and beside the row's time: in words, and (N,) each."""
    for whose, group in (("the item", rows.item), ("the user", rows.user)):
        yield f"how far it lies from {whose}'s average", values - _mean_of_group(values, group)
    if rows.time_us is None:
        return
    for whose, group in (
        ("the user", rows.user),
        ("the item", rows.item),
        ("the domain", np.zeros(len(rows.label), np.int64)),
    ):
        for change in _changes(values, group, rows.time_us):
            yield f"what it gains on {whose}'s row before", change
    filled = np.isfinite(values)
    if filled.sum() > FEWEST_ROWS and np.ptp(values[filled]) > 0:
        when = (rows.time_us - rows.time_us.min()) / DAY_US
        if np.ptp(when[filled]) > 0 and abs(np.corrcoef(values[filled], when[filled])[0, 1]) > A_TIME:
            slope, start = np.polyfit(when[filled], values[filled], 1)
            yield "how far it lies from the row's time", values - slope * when - start


def _mean_of_group(values: np.ndarray, group: np.ndarray) -> np.ndarray:
    filled = np.isfinite(values)
    size = int(group.max()) + 1
    count = np.bincount(group[filled], minlength=size)
    total = np.bincount(group[filled], values[filled], minlength=size)
    return np.divide(total, count, out=np.full(size, np.nan), where=count > 0)[group]


def value_codes(values: np.ndarray) -> np.ndarray:
    """A code for each value, (N,), 0 where it is missing: every value its own, or, of many numbers, bins."""
    if values.dtype.kind == "O":
        text = np.array(["" if value is None else f"={value}" for value in values])
        return np.unique(text, return_inverse=True)[1].ravel() + int(not (text == "").any())
    # Running sums of floats: what differs by rounding alone is one value.
    numbers = np.round(values.astype(np.float64), 9)
    filled = np.isfinite(numbers)
    edges = np.unique(numbers[filled])
    if len(edges) > MOST_VALUES:
        edges = np.unique(np.quantile(numbers[filled], np.linspace(0, 1, MOST_VALUES // 4 + 1)))
    codes = np.searchsorted(edges, numbers, "left") + np.searchsorted(edges, numbers, "right") + 1
    return np.where(filled, codes, 0)


@dataclass(frozen=True)
class Told:
    """How well a column tells held-out labels, in words, and whether that is beyond what is plausible."""

    said: str = ""
    implausible: bool = False


class Ruler(Protocol):
    """Measures columns of one domain, given by codes (N,), against what its item and user biases tell."""

    def measure(self, codes: np.ndarray) -> Told: ...


def _ruler(rows: JudgedRows) -> Ruler:
    random = np.random.default_rng(0)
    train, held = (
        part if len(part) <= most else np.sort(random.permutation(part)[:most])
        for part, most in ((rows.train, MOST_ROWS), (rows.held, MOST_ROWS // 2))
    )
    label = np.asarray(rows.label, np.float64)
    reference = _biases(rows.user, rows.item, label, train)
    return _Clicks(label, train, held, reference) if rows.task == "ctr" else _Ratings(label, train, held, reference)


@dataclass(frozen=True)
class _Measured:
    """``reference`` (N,) are scores by item and user biases."""

    label: np.ndarray
    train: np.ndarray
    held: np.ndarray
    reference: np.ndarray

    def columns(self, codes: np.ndarray) -> np.ndarray:
        """The reference and the mean label of each row's value, (N, 2); in training without the row itself."""
        train, label = self.train, self.label
        size, mean = int(codes.max()) + 1, self.label[self.train].mean()
        total = np.bincount(codes[train], label[train], size) + STRENGTH * mean
        count = np.bincount(codes[train], minlength=size) + STRENGTH
        value = (total / count)[codes]
        value[train] = (total[codes[train]] - label[train]) / (count[codes[train]] - 1)
        both = np.stack([self.reference, value], 1)
        return (both - both[train].mean(0)) / np.maximum(both[train].std(0), 1e-9)


class _Clicks(_Measured):
    def measure(self, codes: np.ndarray) -> Told:
        columns, label = self.columns(codes), self.label[self.held]
        if np.ptp(label) == 0:
            return Told()
        fitted = LogisticRegression(max_iter=200).fit(columns[self.train], self.label[self.train])
        usual = max(auc(label, self.reference[self.held]), 0.5)
        alone = auc(label, columns[self.held, 1])
        beside = auc(label, fitted.decision_function(columns[self.held]))
        way = (max(alone, beside) - usual) / max(1 - usual, 1e-9)
        said = f"alone it tells positives from negatives with AUC {alone:.3f}; item and user biases reach {usual:.3f}"
        if alone >= BEST_ALONE and way >= MOST_OF_THE_WAY:
            return Told(said, implausible=True)
        sure = self._sure_values(codes[self.held], columns[self.held, 1], label)
        return Told(sure or said, implausible=sure is not None)

    def _sure_values(self, codes: np.ndarray, value: np.ndarray, label: np.ndarray) -> str | None:
        """Values that come with a positive always, where they hold many of the positives and not all rows do."""
        purity, share = SURE_VALUES
        order = np.argsort(-value, kind="stable")
        ends = np.flatnonzero(np.r_[codes[order][1:] != codes[order][:-1], True])
        positives, taken = np.cumsum(label[order])[ends], ends + 1
        pure = (positives >= purity * taken) & (positives >= max(share * label.sum(), FEWEST_ROWS))
        if not pure.any() or label.mean() > MOSTLY_POSITIVE:
            return None
        most = int(np.flatnonzero(pure)[-1])
        return (
            f"some of its values come with a positive in {positives[most] / taken[most]:.1%} of {taken[most]:,} rows; "
            f"of all rows {label.mean():.1%} are positive"
        )


class _Ratings(_Measured):
    def measure(self, codes: np.ndarray) -> Told:
        columns, held = self.columns(codes), self.label[self.held]

        def error(chosen: slice) -> float:
            x = columns[:, chosen]
            fitted = LinearRegression().fit(x[self.train], self.label[self.train])
            return float(np.abs(fitted.predict(x[self.held]) - held).mean())

        usual, beside = error(slice(0, 1)), min(error(slice(0, 2)), error(slice(1, 2)))
        said = f"with it the mean absolute error is {beside:.3f}; item and user biases reach {usual:.3f}"
        return Told(said, implausible=usual > 0 and 1 - beside / usual >= MOST_OF_THE_ERROR)


def _biases(user: np.ndarray, item: np.ndarray, label: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Mean + item bias + user bias, (N,); for training rows by halves that did not see them."""
    score = ItemUserBias(STRENGTH, STRENGTH).fit(user[train], item[train], label[train]).predict(user, item)
    half = np.random.default_rng(1).random(len(train)) < 0.5
    for learned, scored in ((train[half], train[~half]), (train[~half], train[half])):
        fitted = ItemUserBias(STRENGTH, STRENGTH).fit(user[learned], item[learned], label[learned])
        score[scored] = fitted.predict(user[scored], item[scored])
    return score


def _changes(values: np.ndarray, group: np.ndarray, time_us: np.ndarray) -> Iterator[np.ndarray]:
    """What each row adds to a sum, and to the sum behind a mean, since its group's row before, (N,) each."""
    # Rows of one time never see each other; of those before, the highest value is what a running sum had come to.
    order = np.lexsort((values, time_us, group))
    value, whose, moment = values[order], group[order], time_us[order]
    at = np.arange(len(value))
    first = np.r_[True, whose[1:] != whose[:-1]]
    begin = np.maximum.accumulate(np.where(first, at, 0))
    together = np.maximum.accumulate(np.where(first | np.r_[True, moment[1:] != moment[:-1]], at, 0))
    before = np.where(together > begin, value[np.maximum(together - 1, 0)], 0.0)
    place = together - begin + 1
    for change in (value - before, place * value - (place - 1) * before):
        found = np.empty(len(value))
        found[order] = change
        yield found


def _aggregate(rows: JudgedRows, feature: Feature) -> str | None:
    later = np.zeros(len(rows.label), bool)
    later[rows.held] = True
    groups = {"item": rows.item, "user": rows.user}
    for whose in ("item", "user"):
        if feature.of not in (whose, "context"):
            continue
        for grouped in ways_to_aggregate(feature.values, rows.label, groups[whose], later, rows.time_us, whose=whose):
            if why := holds_own_labels(grouped) or counts_the_future(grouped):
                return why
    return None

"""Aggregates that hold the rows they are judged on: a mean over all rows, a count up to the end of the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.stats import rankdata

from domains.events.histories import splitmix64

DAY_US, HOUR_US = 86_400_000_000, 3_600_000_000
FEWEST_GROUPS = 30
MOST_GROUPS = 20_000
"""Items or users that are looked at, at most; a draw of them where there are more."""
ROWS_OF_A_LOOK = 20_000
"""Rows that are looked at for each time zone, before all are."""
DRAWS = 200
SURE_MADE_UP, MADE_UP, BEYOND_USUAL = 0.1, 0.25, 0.3
"""The lower bound of what is made up for, its least, and how far it must exceed the same without the feature."""
MOSTLY_NUMBERS = 0.9
"""Share of texts that are numbers from which a category is read as a number, such as "4.5"."""
SAME_ORDER = 0.995
"""Rank correlation from which a feature counts as a count itself."""


@dataclass(frozen=True)
class Grouped:
    """A feature that is alike in all rows of an item, a user, or of one of them on one day.

    Shapes (G groups): ``value`` (G,) numbers, or codes where ``coded``; ``rows``, ``labels`` (2, G): how many rows and
    the sum of their labels in the first and in the second part. The second are the rows that are judged on
    (``judged_apart``), or a random half.
    """

    whose: str
    value: np.ndarray
    coded: bool
    rows: np.ndarray
    labels: np.ndarray
    judged_apart: bool

    @classmethod
    def of(
        cls, values: _Values, group: np.ndarray, chosen: np.ndarray, second: np.ndarray, *, judged_apart: bool = False
    ) -> Self:
        """Count the chosen rows, (N,) bool, by group (N,); ``second`` (N,) bool are those of the second part."""
        number, label, group, second = values.number[chosen], values.label[chosen], group[chosen], second[chosen]
        keys, at = np.unique(group, return_inverse=True)
        if len(keys) > MOST_GROUPS:
            drawn = np.argsort(splitmix64(np.arange(len(keys), dtype=np.uint64)))[:MOST_GROUPS]
            kept = np.isin(at, drawn)
            number, label, second = number[kept], label[kept], second[kept]
            keys, at = np.unique(at[kept], return_inverse=True)
        value = np.empty(len(keys))
        value[at] = number
        parts = (~second, second)
        rows = np.stack([np.bincount(at, part, len(keys)) for part in parts])
        labels = np.stack([np.bincount(at, part * label, len(keys)) for part in parts])
        return cls(values.whose, value, values.coded, rows, labels, judged_apart)

    @property
    def parts(self) -> tuple[str, str]:
        """The two parts, in words."""
        return ("earlier rows", "those judged on") if self.judged_apart else ("half of the rows", "the other half")


@dataclass(frozen=True)
class _Values:
    """A feature and the labels beside it, (N,) each: ``number`` NaN where missing, codes of texts where ``coded``."""

    whose: str
    number: np.ndarray
    label: np.ndarray
    coded: bool

    @classmethod
    def of(cls, values: np.ndarray, label: np.ndarray, whose: str) -> Self:
        if values.dtype.kind != "O":
            return cls(whose, values.astype(np.float64), label, coded=False)
        text = np.array(["" if value is None else f"{value}" for value in values])
        distinct, at = np.unique(text, return_inverse=True)
        numbers = np.array([_number(value) for value in distinct])
        if np.isfinite(numbers[at.ravel()]).mean() > MOSTLY_NUMBERS * (text != "").mean():
            return cls(whose, numbers[at.ravel()], label, coded=False)
        codes = at.ravel().astype(np.float64)
        codes[text == ""] = np.nan
        return cls(whose, codes, label, coded=True)


def ways_to_aggregate(
    values: np.ndarray,
    label: np.ndarray,
    group: np.ndarray,
    later: np.ndarray,
    time_us: np.ndarray | None,
    *,
    whose: str,
) -> Iterator[Grouped]:
    """The feature by group in every way in which an aggregate might have been made; none where it varies within.

    Args:
        values, label, group, later, time_us: (N,) each; ``later`` are the rows at or after the cut, or without time
            those that are judged on.
        whose: what a group is, "item" or "user".
    """
    read = _Values.of(values, label, whose)
    known = np.isfinite(read.number)
    half = splitmix64(np.arange(len(label), dtype=np.uint64)) % np.uint64(2) == 1
    if _alike(group, read.number):
        yield Grouped.of(read, group, known, later, judged_apart=True)
        # Without time a user's rows are all learnt from or all judged on.
        yield Grouped.of(read, group, known if time_us is None and whose == "user" else known & later, half)
    elif time_us is not None and (by_day := _by_day(group, time_us, read.number)) is not None:
        yield Grouped.of(read, by_day, known & later, half)


def holds_own_labels(grouped: Grouped) -> str | None:
    """How the feature shows that it holds the labels of its own rows.

    What it leaves unexplained in one part of an item's rows is then made up for in the other, since both together are
    what the feature says. An honest feature leaves an item that is better than it says better in both.
    """
    both: np.ndarray = np.all(grouped.rows > 0, axis=0)
    if both.sum() < FEWEST_GROUPS:
        return None
    left = _made_up(grouped, both, explained=True)
    usual = _made_up(grouped, both, explained=False)
    value, low = float(left[0]), float(np.quantile(left[1:], 0.005))
    if not (low > SURE_MADE_UP and value > MADE_UP and value > usual[0] + BEYOND_USUAL):
        return None
    first, second = grouped.parts
    return (
        f"it holds the labels of its own rows: what it leaves open in {first} of the same {grouped.whose} is made up "
        f"for in {second} ({value:.0%}; without it {usual[0]:.0%})"
    )


def counts_the_future(grouped: Grouped) -> str | None:
    """Whether the feature is in the order of what the whole file adds up to, and not of what earlier rows do."""
    if grouped.coded or not grouped.judged_apart or grouped.rows.shape[1] < FEWEST_GROUPS:
        return None
    for what, total, earlier in _totals(grouped):
        whole, before = _same_order(grouped.value, total), _same_order(grouped.value, earlier)
        if whole >= SAME_ORDER and 1 - before > 3 * (1 - whole) + 0.002:
            return (
                f"it is in the order of {what} of each {grouped.whose} of the whole file (rank correlation "
                f"{whole:.3f}; of the rows before those judged on {before:.3f})"
            )
    return None


def _totals(grouped: Grouped) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    rows, labels = grouped.rows, grouped.labels
    yield "the number of rows", rows.sum(0), rows[0]
    yield "the sum of labels", labels.sum(0), labels[0]
    mean = labels[0].sum() / max(rows[0].sum(), 1)
    earlier = np.divide(labels[0], rows[0], out=np.full(rows.shape[1], mean), where=rows[0] > 0)
    yield "the mean label", labels.sum(0) / rows.sum(0), earlier


def _same_order(value: np.ndarray, other: np.ndarray) -> float:
    if np.ptp(value) == 0 or np.ptp(other) == 0:
        return 0.0
    return float(np.corrcoef(rankdata(value), rankdata(other))[0, 1])


def _made_up(grouped: Grouped, both: np.ndarray, *, explained: bool) -> np.ndarray:
    """How much of what is left in one part the other makes up for, -1 to 1: over all groups, then in each draw."""
    left = np.empty_like(grouped.labels)
    for part, (rows, labels) in enumerate(zip(grouped.rows, grouped.labels, strict=True)):
        mean = labels / np.maximum(rows, 1)
        said = _explained(grouped, mean, rows) if explained else np.full(len(mean), labels.sum() / max(rows.sum(), 1))
        left[part] = (labels - rows * said) / np.sqrt(grouped.rows.sum(0))
    first, second = left[:, both]
    groups = len(first)
    draws = np.random.default_rng(0).multinomial(groups, np.full(groups, 1 / groups), size=DRAWS)
    weight = np.concatenate([np.ones((1, groups)), draws])
    return -2 * (weight @ (first * second)) / np.maximum(weight @ (first**2 + second**2), 1e-12)


def _explained(grouped: Grouped, mean: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The mean label of each group as the feature tells it, learnt from other groups, (G,)."""
    told = np.empty(len(mean))
    fold = splitmix64(np.arange(len(mean), dtype=np.uint64)) % np.uint64(2)
    design = _codes(grouped.value) if grouped.coded else _bends(grouped.value)
    for held in (0, 1):
        learned = fold != held
        weight = rows[learned]
        overall = float(np.average(mean[learned], weights=weight)) if weight.any() else 0.0
        weighted = design[learned] * weight[:, None]
        solved = np.linalg.lstsq(
            design[learned].T @ weighted + 1e-6 * np.eye(design.shape[1]),
            weighted.T @ (mean[learned] - overall),
            rcond=None,
        )[0]
        told[~learned] = design[~learned] @ solved + overall
    return told


def _bends(value: np.ndarray) -> np.ndarray:
    """A line that may bend at the deciles, (G, K)."""
    spread = value.std() or 1.0
    at = np.unique(np.quantile(value, np.linspace(0, 1, 9)[1:-1]))
    bent = [np.maximum(value - place, 0) / spread for place in at]
    return np.stack([np.ones(len(value)), (value - value.mean()) / spread, *bent], 1)


def _codes(value: np.ndarray, most: int = 100) -> np.ndarray:
    """A column for each of the most frequent codes, (G, K)."""
    codes, count = np.unique(value, return_counts=True)
    kept = codes[np.argsort(-count, kind="stable")[:most]]
    return (value[:, None] == kept[None]).astype(np.float64)


def _alike(group: np.ndarray, value: np.ndarray) -> bool:
    """Whether nearly all rows hold the value that their group's first row holds, and groups have several rows."""
    if not len(group):
        return False
    keys, first, at = np.unique(group, return_index=True, return_inverse=True)
    if len(keys) > len(group) / 1.3:
        return False
    held = value[first][at]
    return bool(((value == held) | (np.isnan(value) & np.isnan(held))).mean() > 0.99)


def _by_day(group: np.ndarray, time_us: np.ndarray, value: np.ndarray) -> np.ndarray | None:
    """A number for each group and day, (N,), in the time zone in which the value changes by the day; else None."""
    some = splitmix64(group.astype(np.uint64)) % np.uint64(max(1, len(group) // ROWS_OF_A_LOOK)) == 0
    for hour in range(24):
        day = (time_us + hour * HOUR_US) // DAY_US
        if _alike(_pairs(group[some], day[some]), value[some]) and _alike(days := _pairs(group, day), value):
            return days
    return None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return first * (int(second.max()) - int(second.min()) + 1) + second - int(second.min())

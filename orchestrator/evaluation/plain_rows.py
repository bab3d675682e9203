"""Rows of a results table that need no training run: what a team could always use.

Each is a function of the training rows' items and labels, (N,) each, and of the items to score, (M,); it answers (M,)
probabilities or ratings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from models.baselines.plain import ItemUserBias
from orchestrator.data.batches import Examples

STRENGTH = 20.0
"""Rows at the overall mean that each item is assumed to have."""


def train_mean(_train_item: np.ndarray, train_label: np.ndarray, item: np.ndarray) -> np.ndarray:
    """The same score for all: the mean label in training."""
    return np.full(len(item), train_label.mean())


def item_mean(train_item: np.ndarray, train_label: np.ndarray, item: np.ndarray) -> np.ndarray:
    """An item's smoothed mean label: (sum + strength * mean) / (count + strength); items never seen get the mean."""
    size = int(max(train_item.max(initial=0), item.max(initial=0))) + 1
    mean = float(train_label.mean()) if len(train_label) else 0.0
    total = np.bincount(train_item, weights=train_label, minlength=size)
    count = np.bincount(train_item, minlength=size)
    return ((total + STRENGTH * mean) / (count + STRENGTH))[item]


def popularity(train_item: np.ndarray, train_label: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Popularity as a click rate: how often an item was taken, not how well it did per view, mapped to a probability.

    A logistic curve over log(1 + positives), fitted on the training rows; it keeps the order of popularity. Where all
    rows have one label there is nothing to fit, and every item gets it.
    """
    if not 0 < train_label.mean() < 1:
        return np.full(len(item), train_label.mean())
    size = int(max(train_item.max(initial=0), item.max(initial=0))) + 1
    taken = np.log1p(np.bincount(train_item, weights=train_label, minlength=size))
    curve = LogisticRegression().fit(taken[train_item][:, None], train_label)
    slope = max(float(curve.coef_[0, 0]), 1e-3)
    return expit(slope * taken[item] + float(curve.intercept_[0]))


PLAIN_ROWS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "train_mean": train_mean,
    "popularity": popularity,
    "item_mean": item_mean,
}


def plain_rows(task: str, train: Examples, rows: Examples, names: Iterable[str] = PLAIN_ROWS) -> dict[str, np.ndarray]:
    """Scores of ``rows`` by each plain row of a table; ratings know no popularity."""
    known = [name for name in names if task == "ctr" or name != "popularity"]
    return {name: PLAIN_ROWS[name](train.item, train.label, rows.item) for name in known}


def item_user_bias(task: str, train: Examples, rows: Examples) -> np.ndarray:
    """Mean + item bias + user bias; a user whom training never saw has none. Of clicks it is kept a probability."""
    score = ItemUserBias(STRENGTH, STRENGTH).fit(train.user, train.item, train.label).predict(rows.user, rows.item)
    return np.clip(score, 1e-4, 1 - 1e-4) if task == "ctr" else score

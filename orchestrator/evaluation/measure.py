"""What a version is worth: beside the plain rows, on the same examples, with intervals over users."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from domains.spec import Gate
from models import metrics
from models.intervals import bootstrap_interval, paired_difference, seed_interval
from models.metrics import METRICS, metrics_of

DRAWS = 500


def measure(
    task: str, *, label: np.ndarray, score: np.ndarray, user: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Every metric of a task with its 95 % interval over users: ``{"auc": {"value", "low", "high"}, ...}``."""
    return {
        metric.name: bootstrap_interval(metric, label=label, score=score, user=user, draws=draws, seed=seed).as_dict()
        for metric in metrics_of(task)
    }


def report(
    task: str,
    gate: Gate,
    *,
    subject: str,
    scores: Mapping[str, np.ndarray],
    label: np.ndarray,
    user: np.ndarray,
    segments: Mapping[str, np.ndarray],
    cold_users: int,
    leaks: list[str],
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Any]:
    """The cold-start report of ``subject``, one of ``scores``, against every other row of ``scores``.

    Args:
        scores: for each row of the table its prediction of every test example, (N,) probability or rating.
        segments: named masks (N,) of test examples, each measured apart when it holds enough.

    Returns:
        plain JSON: ``rows[name][metric] = {value, low, high}``, ``gain[name] = {value, low, high}`` (improvement of
        the subject on the gate's metric, positive is better, paired over users), ``segments``, and how calibrated the
        subject is: ``prediction_bias``, which the gate limits, and for clicks ``pcoc`` and ``ece``.
    """
    rows = {
        name: measure(task, label=label, score=score, user=user, draws=draws, seed=seed)
        for name, score in scores.items()
    }
    metric = METRICS[gate.metric]
    gain = {}
    for name, score in scores.items():
        if name == subject:
            continue
        difference = paired_difference(
            metric,
            label=label,
            score_a=scores[subject],
            score_b=score,
            user=user,
            draws=draws,
            seed=seed,
        )
        low, high = sorted((metric.sign * difference.low, metric.sign * difference.high))
        gain[name] = {"value": metric.sign * difference.value, "low": low, "high": high}
    by_segment = {}
    for name, mask in segments.items():
        found = segment(
            task, scores={row: score[mask] for row, score in scores.items()}, label=label[mask], user=user[mask]
        )
        if found is not None:
            by_segment[name] = found
    return {
        "task": task,
        "metric": gate.metric,
        "subject": subject,
        "examples": len(label),
        "users": len(np.unique(user)),
        "cold_users": cold_users,
        "label_mean": float(label.mean()),
        "rows": rows,
        "gain": gain,
        "segments": by_segment,
        "prediction_bias": prediction_bias(task, label, scores[subject]),
        "pcoc": metrics.pcoc(label, scores[subject]) if task == "ctr" else None,
        "ece": metrics.ece(label, scores[subject]) if task == "ctr" else None,
        "reliability": reliability(label, scores[subject]) if task == "ctr" else None,
        "leaks": leaks,
    }


def segment(
    task: str, *, scores: Mapping[str, np.ndarray], label: np.ndarray, user: np.ndarray, seed: int = 0
) -> dict[str, Any] | None:
    """Every row of the table on some of the examples; None where they are too few, or of one label, to measure."""
    if len(label) < 50 or (task == "ctr" and not 0 < label.mean() < 1):
        return None
    return {
        "examples": len(label),
        "users": len(np.unique(user)),
        "rows": {
            row: measure(task, label=label, score=score, user=user, draws=200, seed=seed)
            for row, score in scores.items()
        },
    }


def over_seeds(
    task: str, scores: Mapping[int, np.ndarray], *, label: np.ndarray, user: np.ndarray
) -> dict[str, dict[str, Any]]:
    """Mean of every metric over seeds with its t interval, and each: ``{"auc": {"value", "low", "high", "each"}}``."""
    found = {}
    for metric in metrics_of(task):
        each = {seed: metric(label, score, user) for seed, score in scores.items()}
        found[metric.name] = {**seed_interval(list(each.values())).as_dict(), "each": each}
    return found


def gain_over_seeds(
    gate: Gate,
    subject: Mapping[int, np.ndarray],
    other: Mapping[int, np.ndarray],
    *,
    label: np.ndarray,
    user: np.ndarray,
) -> dict[str, Any]:
    """Mean improvement of the subject over another row on the gate's metric, seed by seed, with its t interval.

    A row that knows no seeds is given under one alone, and stands for all.
    """
    metric = METRICS[gate.metric]
    each = {
        seed: metric.sign
        * (metric(label, score, user) - metric(label, other.get(seed, next(iter(other.values()))), user))
        for seed, score in subject.items()
    }
    return {**seed_interval(list(each.values())).as_dict(), "each": each}


def prediction_bias(task: str, label: np.ndarray, score: np.ndarray) -> float:
    """How far predictions are off on average, as a share: |PCOC - 1|; for ratings |bias| / standard deviation."""
    if task == "ctr":
        return float(abs(score.mean() / max(label.mean(), 1e-9) - 1.0))
    return float(abs(score.mean() - label.mean()) / max(label.std(), 1e-9))


def reliability(label: np.ndarray, score: np.ndarray, bins: int = 10) -> list[dict[str, float]]:
    """Predicted and observed click rates in equal-count bins of the prediction, for a plot."""
    order = np.argsort(score, kind="stable")
    return [
        {"predicted": float(score[part].mean()), "observed": float(label[part].mean()), "examples": len(part)}
        for part in np.array_split(order, bins)
        if len(part)
    ]


def item_mean(
    train_item: np.ndarray, train_label: np.ndarray, item: np.ndarray, *, strength: float = 20.0
) -> np.ndarray:
    """The plain row every table carries: an item's smoothed mean label in training, for each test item.

    (sum + strength * mean) / (count + strength); items never seen get the mean.
    """
    size = int(max(train_item.max(initial=0), item.max(initial=0))) + 1
    mean = float(train_label.mean()) if len(train_label) else 0.0
    total = np.bincount(train_item, weights=train_label, minlength=size)
    count = np.bincount(train_item, minlength=size)
    return ((total + strength * mean) / (count + strength))[item]


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

"""Leave-one-out target encoding: an item's mean label in training, and for each training row the mean without it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy.special import expit

from models.layers.wide import as_score
from orchestrator.data.batches import Examples

CLICK_STRENGTH = 20.0
USER_STRENGTH = 5.0
"""Rows at the overall mean that each item, or each user's bias, is assumed to have."""
RATING_STRENGTHS = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0)
"""What an item's ratings are tried with: how far items differ from each other is a domain's own matter."""
ROUNDS = 10
RIDGE = 1.0


@dataclass(frozen=True)
class TargetEncoding:
    """Mean labels by local item index, (V,); entry 0 is the overall mean, for items never seen.

    ``correction`` (N,) is added to each training row's score, so that it starts from its item's mean without the row
    itself: otherwise the network would learn to trust a mean that has seen the row's label.
    """

    means: np.ndarray
    correction: np.ndarray


def fit_target_encoding(rows: Examples, size: int, task: str) -> TargetEncoding:
    """Smoothed mean label of each item; for ratings after removing each user's own bias.

    mean_i = mu + sum(y - mu - b_u) / (n_i + strength), and likewise b_u, solved in turn (b_u = 0 for clicks). Ratings
    take the strength under which the other rows predict each row best. Where clicks are derived from finer values
    (stars above a bound), these are used as well.
    """
    if task == "ctr" and len(np.unique(rows.value)) > 2:
        return _with_values(rows, size)
    return _encoding(rows, size, task)


def _with_values(rows: Examples, size: int) -> TargetEncoding:
    """Click means that use the values behind the clicks too: four stars and five are one label, but differ.

    logit_i = logit_0 + a (logit(mean_i) - logit_0) + b bias_i, with a and b of a logistic regression on means and
    biases without the row itself, so that neither is trusted for having seen its label.
    """
    clicks = _encoding(rows, size, "ctr")
    values = _encoding(replace(rows, label=rows.value), size, "rating")
    start = _score(clicks.means[:1], "ctr")
    whole = np.stack([_score(clicks.means, "ctr") - start, values.means - values.means[0]], 1).astype(np.float64)
    item = np.where(rows.item < size, rows.item, 0)
    without = whole[item] + np.stack([clicks.correction, values.correction], 1)
    weight = np.array([1.0, 0.0])
    for _ in range(ROUNDS):
        chance = expit(start + without @ weight)
        curvature = (without * (chance * (1 - chance))[:, None]).T @ without + RIDGE * np.eye(2)
        weight = weight + np.linalg.solve(curvature, without.T @ (rows.label - chance) - RIDGE * (weight - [1.0, 0.0]))
    # Through float32, as networks read them: a row's correction is relative to that.
    means = expit(start + whole @ weight).clip(1e-4, 1 - 1e-4).astype(np.float32)
    return TargetEncoding(means, (start + without @ weight - _score(means, "ctr")[item]).astype(np.float32))


def _encoding(rows: Examples, size: int, task: str) -> TargetEncoding:
    label = rows.label.astype(np.float64)
    overall = float(label.mean()) if len(label) else 0.5
    item = np.where(rows.item < size, rows.item, 0)
    _, user = np.unique(rows.user, return_inverse=True)
    solve = partial(_biases, label - overall, item, user, size)
    if task == "ctr":
        bias, without, _ = solve(CLICK_STRENGTH, rounds=0)
    else:
        bias, without, _ = min((solve(strength, rounds=ROUNDS) for strength in RATING_STRENGTHS), key=lambda s: s[2])
    return TargetEncoding(
        (overall + bias).astype(np.float32), _score(overall + without, task) - _score(overall + bias[item], task)
    )


def _biases(
    residual: np.ndarray, item: np.ndarray, user: np.ndarray, size: int, strength: float, *, rounds: int
) -> tuple[np.ndarray, np.ndarray, float]:
    """Biases by item (V,); the bias of each row's item without that row (N,); squared error of rows left out."""
    users, by_item = np.bincount(user), np.bincount(item, minlength=size)
    own = np.zeros(len(residual))
    bias = np.bincount(item, residual, size) / (by_item + strength)
    for _ in range(rounds):
        own = (np.bincount(user, residual - bias[item]) / (users + USER_STRENGTH))[user]
        bias = np.bincount(item, residual - own, size) / (by_item + strength)
    bias[0] = 0.0
    without = (bias[item] * (by_item[item] + strength) - (residual - own)) / (by_item[item] - 1 + strength)
    without = np.where(item == 0, 0.0, without)
    left = residual - without
    others = (np.bincount(user, left)[user] - left) / (users[user] - 1 + USER_STRENGTH) if len(left) else left
    return bias, without, float(np.square(left - others).sum())


def leave_one_out(rows: Examples, encoding: TargetEncoding) -> Examples:
    """Training rows whose offset starts them from their item's mean without themselves."""
    return replace(rows, offset=(rows.offset + encoding.correction).astype(np.float32))


def _score(mean: np.ndarray, task: str) -> np.ndarray:
    return as_score(torch.from_numpy(mean), task).numpy()

"""What each item gets on average in training, and the correction that keeps a row from voting for itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch

from models.evidence import as_score
from orchestrator.training_data import Examples

CLICK_STRENGTH = 20.0
USER_STRENGTH = 5.0
"""Rows at the overall mean that each item, or each user's bias, is assumed to have."""
RATING_STRENGTHS = (1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0)
"""What an item's ratings are tried with: how far items differ from each other is a domain's own matter."""
ROUNDS = 10


@dataclass(frozen=True)
class ItemMeans:
    """Means by local item index, (V,); entry 0 is the overall mean, for items never seen.

    ``correction`` (N,) is what must be added to each training row's score so that it starts from its item's mean
    without the row itself: otherwise the network would learn to trust a mean that has already seen the answer.
    """

    means: np.ndarray
    correction: np.ndarray


def item_means(rows: Examples, size: int, task: str) -> ItemMeans:
    """Smoothed mean label of each item; for ratings after removing each user's own bias.

    mean_i = mu + sum(y - mu - b_u) / (n_i + strength), and likewise b_u, solved in turn (b_u = 0 for clicks). Ratings
    take the strength under which each row is told best by all others.
    """
    label = rows.label.astype(np.float64)
    overall = float(label.mean()) if len(label) else 0.5
    item = np.where(rows.item < size, rows.item, 0)
    _, user = np.unique(rows.user, return_inverse=True)
    solve = partial(_biases, label - overall, item, user, size)
    if task == "ctr":
        bias, without, _ = solve(CLICK_STRENGTH, rounds=0)
    else:
        bias, without, _ = min((solve(strength, rounds=ROUNDS) for strength in RATING_STRENGTHS), key=lambda s: s[2])
    return ItemMeans(
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


def without_itself(rows: Examples, means: ItemMeans) -> Examples:
    """Training rows that start from their item's mean without themselves."""
    return replace(rows, prior=(rows.prior + means.correction).astype(np.float32))


def _score(mean: np.ndarray, task: str) -> np.ndarray:
    return as_score(torch.from_numpy(mean), task).numpy()

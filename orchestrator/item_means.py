"""What each item gets on average in training, and the correction that keeps a row from voting for itself."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from models.evidence import as_score
from orchestrator.training_data import Examples

CLICK_STRENGTH = 20.0
RATING_STRENGTH = 5.0
"""Rows at the overall mean that each item is assumed to have; the same for a user's bias."""
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

    mean_i = mu + sum(y - mu - b_u) / (n_i + strength), and likewise b_u, solved in turn (b_u = 0 for clicks).
    """
    strength = CLICK_STRENGTH if task == "ctr" else RATING_STRENGTH
    label = rows.label.astype(np.float64)
    overall = float(label.mean()) if len(label) else 0.5
    item = np.where(rows.item < size, rows.item, 0)
    _, user = np.unique(rows.user, return_inverse=True)
    users, by_item = np.bincount(user), np.bincount(item, minlength=size)
    residual = label - overall
    own = np.zeros(len(label))
    bias = np.bincount(item, residual, size) / (by_item + strength)
    if task == "rating":
        for _ in range(ROUNDS):
            own = (np.bincount(user, residual - bias[item]) / (users + strength))[user]
            bias = np.bincount(item, residual - own, size) / (by_item + strength)
    bias[0] = 0.0
    without = (bias[item] * (by_item[item] + strength) - (residual - own)) / (by_item[item] - 1 + strength)
    without = np.where(item == 0, 0.0, without)
    return ItemMeans(
        (overall + bias).astype(np.float32), _score(overall + without, task) - _score(overall + bias[item], task)
    )


def without_itself(rows: Examples, means: ItemMeans) -> Examples:
    """Training rows that start from their item's mean without themselves."""
    return replace(rows, prior=(rows.prior + means.correction).astype(np.float32))


def _score(mean: np.ndarray, task: str) -> np.ndarray:
    return as_score(torch.from_numpy(mean), task).numpy()

"""Rank counts: where the one relevant candidate of each query stands, and the gain of that rank.

A query is a list of C candidates of which one is relevant (leave-one-out, 999 negatives). Its scores come down to two
numbers, so these are stored and not Q x C scores. Equal scores count by the mean over their random orders, as in
``models.metrics.auc``: a model that scores all alike gets no rank by luck of the sort.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def rank_counts(score: Array, relevant: Array) -> NDArray[np.int32]:
    """Candidates above the relevant one, and those level with it (itself among them), (Q, 2).

    Args:
        score: (Q, C), higher is better
        relevant: (Q,) position of the relevant candidate
    """
    own = np.take_along_axis(score, np.asarray(relevant)[:, None], 1)
    return np.stack([(score > own).sum(1), (score == own).sum(1)], 1).astype(np.int32)


def reciprocal_rank(counts: Array) -> NDArray[np.float64]:
    """1 / rank of each query, (Q,)."""
    return _mean_gain(counts, lambda rank: 1 / rank)


def ndcg(counts: Array, k: int = 10) -> NDArray[np.float64]:
    """Discounted gain of each query within the first k; the ideal is 1, (Q,)."""
    return _mean_gain(counts, lambda rank: np.where(rank <= k, 1 / np.log2(rank + 1), 0.0))


def hit(counts: Array, k: int = 10) -> NDArray[np.float64]:
    """Chance of each query that the relevant candidate is among the first k, (Q,)."""
    return _mean_gain(counts, lambda rank: (rank <= k).astype(np.float64))


GAINS: dict[str, Callable[[Array], NDArray[np.float64]]] = {"mrr": reciprocal_rank, "ndcg@10": ndcg, "hit@10": hit}


def _mean_gain(counts: Array, gain: Callable[[NDArray[np.int64]], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Mean gain of the ranks above + 1 .. above + level, by differences of a running sum."""
    above, level = np.asarray(counts, np.int64).T
    running = np.r_[0.0, np.cumsum(gain(np.arange(1, int((above + level).max(initial=0)) + 1)))]
    return (running[above + level] - running[above]) / level

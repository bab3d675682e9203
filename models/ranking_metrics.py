"""Where the one right answer of each question stands among its candidates, and what that place is worth.

A question is a list of C candidates of which one is right (leave-one-out, 999 negatives). What a model said of it comes
down to two numbers, so these are kept and not Q x C scores. Equal scores count by the mean over their random orders,
as in ``models/metrics.py``: a model that scores all alike gets no place by luck of the sort.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def places(score: Array, right: Array) -> NDArray[np.int32]:
    """Candidates above the right one, and those level with it (itself among them), (Q, 2).

    Args:
        score: (Q, C), higher is better
        right: (Q,) position of the right candidate
    """
    own = np.take_along_axis(score, np.asarray(right)[:, None], 1)
    return np.stack([(score > own).sum(1), (score == own).sum(1)], 1).astype(np.int32)


def reciprocal_rank(placed: Array) -> NDArray[np.float64]:
    """1 / rank of each question, (Q,)."""
    return _mean_worth(placed, lambda rank: 1 / rank)


def ndcg(placed: Array, k: int = 10) -> NDArray[np.float64]:
    """Discounted gain of each question within the first k; the ideal is 1, (Q,)."""
    return _mean_worth(placed, lambda rank: np.where(rank <= k, 1 / np.log2(rank + 1), 0.0))


def hit(placed: Array, k: int = 10) -> NDArray[np.float64]:
    """Chance of each question that the right answer is among the first k, (Q,)."""
    return _mean_worth(placed, lambda rank: (rank <= k).astype(np.float64))


WORTH: dict[str, Callable[[Array], NDArray[np.float64]]] = {"mrr": reciprocal_rank, "ndcg@10": ndcg, "hit@10": hit}


def _mean_worth(placed: Array, worth: Callable[[NDArray[np.int64]], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Mean worth of the ranks above + 1 .. above + level, by differences of a running sum."""
    above, level = np.asarray(placed, np.int64).T
    running = np.r_[0.0, np.cumsum(worth(np.arange(1, int((above + level).max(initial=0)) + 1)))]
    return (running[above + level] - running[above]) / level

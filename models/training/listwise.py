"""Listwise training: each query is one relevant candidate, then others, and the loss asks that it ranks first.

Rows of a query are contiguous and begin with the relevant one (label 1, all others 0); queries of one batch may differ
in length. No network may read a row's position, so the order tells it nothing.

A pointwise loss is mostly about how likely a click is at all; what ranks is the difference within a query, and a
softmax over it is exactly the likelihood of the relevant one among the candidates (sampled softmax). No correction for
how negatives were drawn is made: draw them as they are met when the model answers.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.ranking_metrics import reciprocal_rank


def listwise_losses(score: Tensor, label: Tensor) -> Tensor:
    """-log softmax of the relevant row of each query, (Q,), from scores (B,) and labels (B,).

    Raises:
        ValueError: the first row begins no query.
    """
    relevant = label > 0
    if len(label) and not bool(relevant[0]):
        raise ValueError("a query begins with its relevant row, and the first row of this batch is not one")
    query = torch.cumsum(relevant.long(), 0) - 1
    queries = int(relevant.sum())
    score = score.float()
    top = score.new_full((queries,), -torch.inf).scatter_reduce(0, query, score.detach(), "amax")
    total = score.new_zeros(queries).index_add(0, query, (score - top[query]).exp())
    return top + total.log() - score[relevant]


def mean_reciprocal_rank(label: NDArray, score: NDArray) -> float:
    """MRR of queries laid out in rows; equal scores count by the mean over their orders. Higher is better.

    Shapes: label (N,), score (N,)
    """
    relevant = np.flatnonzero(label > 0)
    query = np.cumsum(label > 0) - 1
    own = score[relevant][query]
    above = np.bincount(query, score > own, len(relevant))
    level = np.bincount(query, score == own, len(relevant))
    return float(reciprocal_rank(np.stack([above, level], 1).astype(np.int64)).mean())

"""Questions as lists: one right candidate, then wrong ones, and a loss that only asks that it stands above them.

Rows of a list are contiguous and begin with the right one (label 1, all others 0); lists of one batch may differ in
length. No network may read a row's place, so the order tells it nothing.

A pointwise loss spends itself on how likely a click is at all; what ranks is the difference within a list, and a
softmax over it is exactly the likelihood of the right one among the candidates (sampled softmax). No correction for how
negatives were drawn is made: draw them as they are met when the model answers.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from models.ranking_metrics import reciprocal_rank


def list_losses(score: Tensor, label: Tensor) -> Tensor:
    """-log softmax of the right row of each list, (Q,), from scores (B,) and labels (B,).

    Raises:
        ValueError: the first row begins no list.
    """
    right = label > 0
    if len(label) and not bool(right[0]):
        raise ValueError("a list begins with its right row, and the first row of this batch is not one")
    of_row = torch.cumsum(right.long(), 0) - 1
    lists = int(right.sum())
    score = score.float()
    top = score.new_full((lists,), -torch.inf).scatter_reduce(0, of_row, score.detach(), "amax")
    total = score.new_zeros(lists).index_add(0, of_row, (score - top[of_row]).exp())
    return top + total.log() - score[right]


def mean_reciprocal_rank(label: NDArray, score: NDArray) -> float:
    """MRR of lists laid out in rows; equal scores count by the mean over their orders. Higher is better.

    Shapes: label (N,), score (N,)
    """
    right = np.flatnonzero(label > 0)
    of_row = np.cumsum(label > 0) - 1
    own = score[right][of_row]
    above = np.bincount(of_row, score > own, len(right))
    level = np.bincount(of_row, score == own, len(right))
    return float(reciprocal_rank(np.stack([above, level], 1).astype(np.int64)).mean())

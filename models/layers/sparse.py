"""Sums of the gradient rows of an embedding table, each distinct row once."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def pooled_by_row(ids: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct ids in rising order, (m,), and the sum of each one's rows, (m, D), from ids (n, F) and rows (n, D).

    Row i counts for every one of ``ids[i]``; it is read for each and not copied. A sort and one pooled gather take half
    the time of ``Tensor.coalesce``, and the order of summation is the same every time.
    """
    if ids.numel() == 0:
        return ids.reshape(-1), rows[:0]
    ordered, place = torch.sort(ids.reshape(-1), stable=True)
    place = place.div(ids.shape[1], rounding_mode="floor") if ids.shape[1] > 1 else place
    distinct, count = torch.unique_consecutive(ordered, return_counts=True)
    if distinct.numel() == ordered.numel():
        return distinct, rows.index_select(0, place)
    return distinct, F.embedding_bag(place, rows, torch.cumsum(count, 0) - count, mode="sum")

"""What is expected before any personalisation, and what a user's own labels say of him beside it.

A cold user is judged against two plain facts that a deep network is slow to find by itself: what the item gets on
average, and whether this user's labels lie above or below those of the items he met (``mu + b_i + b_u`` of biased
matrix factorisation). Both are given to the network, so that what it learns is what lies beyond them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.batch import Events

EVIDENCE = 3
"""Numbers a row's history is summed up in."""
SHRINKAGE = 5.0
"""Events of nothing out of the ordinary that a user is assumed to bring."""


def history_evidence(events: Events, mean_of_item: Tensor) -> Tensor:
    """How a user's labels differ from those of the items he met, from the events that each row may see.

    Prefix sums make it cost a look per stored event, however many rows share a history.

    Shapes:
        mean_of_item: (V,) mean label of each row of the table that the history's items live in; row 0 the overall mean
        returns:      (B, EVIDENCE) float: shrunken mean residual, residual's root mean square, log of the event count
    """
    known = torch.where((events.item > 0) & (events.item < len(mean_of_item)), events.item, 0)
    # Double precision, because a difference of two long sums must not depend on what else is stored.
    residual = (events.value.nan_to_num(nan=0.0) - mean_of_item[known]).double()
    past = residual.new_zeros(len(residual), 1)
    total = torch.cat([past, residual.cumsum(1)], 1)
    square = torch.cat([past, (residual * residual).cumsum(1)], 1)
    start = torch.minimum(events.start, events.stop)  # a window that ends before it starts is empty
    count = (events.stop - start).double()
    mean = (total[events.row, events.stop] - total[events.row, start]) / (count + SHRINKAGE)
    spread = (square[events.row, events.stop] - square[events.row, start]) / (count + SHRINKAGE)
    return torch.stack([mean, spread.clamp(min=0).sqrt(), torch.log1p(count) / 5], 1).to(mean_of_item.dtype)


def as_score(mean: Tensor, task: str) -> Tensor:
    """A mean label in the unit of the network's output: its logit for clicks, itself for ratings."""
    return torch.logit(mean.clamp(1e-4, 1 - 1e-4)) if task == "ctr" else mean

"""Wide features: how a user's own labels differ from those of the items they met (the wide part of Wide & Deep).

A cold user is judged by two numbers that a deep network is slow to find by itself: what the item gets on average, and
whether this user's labels lie above or below those of the items they met (``mu + b_i + b_u`` of biased matrix
factorisation). Both are given to the network, so that what it learns is what lies beyond them.

By default clicks read three plain features of a history. Ratings, and clicks whose recipe asks for it, read more, and
their weights are solved for in closed form before the network trains: that beats descent.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.batch import Events

PLAIN_FEATURES = 3
"""Plain features of a row's history."""
LEVELS = 5
"""Bands of event values whose shares are told apart; as many as a five-star scale has values."""
FIRM_FEATURES = 3
"""The first features: that there is a history, its mean residual, the item's own mean. The others refine them."""
RATING_FEATURES = FIRM_FEATURES + 2 + LEVELS + 6 + LEVELS
"""Wide features of a row of ratings."""
MIXES = ((0.1, 2.0), (0.3, 5.0), (1.0, 5.0))
"""How many own events an event of another domain is worth, and how many of nothing out of the ordinary are assumed."""
CLICK_FEATURES = 1 + len(MIXES) + 4
"""Wide features of a row of clicks."""
SHRINKAGE = 5.0
"""Events of nothing out of the ordinary that a user is assumed to bring."""


def plain_features(events: Events, mean_of_item: Tensor) -> Tensor:
    """How a user's labels differ from those of the items they met, from the events that each row may see.

    Prefix sums make it cost a look per stored event, however many rows share a history.

    Shapes:
        mean_of_item: (V,) mean label of each row of the table that the history's items live in; row 0 the overall mean
        returns:      (B, PLAIN_FEATURES): shrunken mean residual, its root mean square, log of the event count
    """
    total, square, count = residual_sums(events, mean_of_item)
    mean, spread = total / (count + SHRINKAGE), square / (count + SHRINKAGE)
    return torch.stack([mean, spread.clamp(min=0).sqrt(), torch.log1p(count) / 5], 1).to(mean_of_item.dtype)


def residual_sums(events: Events, mean_of_item: Tensor, counted: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of the residuals of the events that each row may see, of their squares, and how many; each (B,) double.

    Args:
        counted: (U, L) bool, the stored events that count; all of them where absent.
    """
    known = torch.where((events.item > 0) & (events.item < len(mean_of_item)), events.item, 0)
    # Double precision, because a difference of two long sums must not depend on what else is stored.
    residual = (events.value.nan_to_num(nan=0.0) - mean_of_item[known]).double()
    if counted is not None:
        residual = residual * counted
    start = torch.minimum(events.start, events.stop)  # a window that ends before it starts is empty

    def visible(part: Tensor) -> Tensor:
        total = torch.cat([part.new_zeros(len(part), 1), part.cumsum(1)], 1)
        return total[events.row, events.stop] - total[events.row, start]

    count = (events.stop - start).double() if counted is None else visible(counted.double())
    return visible(residual), visible(residual * residual), count


def value_shares(events: Events, edges: Tensor, usual: Tensor) -> Tensor:
    """How much more often than usual a history's values lie in each band, shrunken as the mean residual is.

    Shapes:
        edges:   (LEVELS - 1,) rising bounds between bands; usual: (LEVELS,) share of all events in each band
        returns: (B, LEVELS); zero where no event is seen
    """
    band = torch.bucketize(events.value.nan_to_num(nan=0.0).contiguous(), edges.to(events.value.dtype))
    inside = torch.nn.functional.one_hot(band, LEVELS).double() - usual.double()
    total = torch.cat([inside.new_zeros(len(inside), 1, LEVELS), inside.cumsum(1)], 1)
    start = torch.minimum(events.start, events.stop)
    count = (events.stop - start).double()[:, None]
    share = (total[events.row, events.stop] - total[events.row, start]) / (count + SHRINKAGE)
    return share.to(usual.dtype)


def rating_features(plain: Tensor, shares: Tensor, item_bias: Tensor) -> Tensor:
    """The features that a rating is expected from; all zero for a user of whom nothing is seen.

    Shapes:
        plain:     (B, PLAIN_FEATURES) of `plain_features`; shares: (B, LEVELS) of `value_shares`
        item_bias: (B,) the item's mean less the overall one
        returns:   (B, RATING_FEATURES): seen or not, user's bias, item's bias; spread, log count, shares; and products
            of these, since a generous user likes the good items not by the same step as the bad ones
    """
    bias, spread, count = plain.unbind(1)
    seen = (count > 0).to(plain.dtype)
    item = item_bias.to(plain.dtype) * seen
    products = [bias * item, bias * count, spread * item, item * count, bias * bias, item * item]
    firm = torch.stack([seen, bias, item, spread, count], 1)
    return torch.cat([firm, shares, torch.stack(products, 1), shares * item[:, None]], 1)


def click_features(
    own: tuple[Tensor, Tensor, Tensor], others: tuple[Tensor, Tensor, Tensor], item_bias: Tensor
) -> Tensor:
    """The features that a click is expected from; all zero for a user of whom nothing is seen.

    A user's leaning is told by their events in the row's own domain and, at a discount, by those in others: where the
    user is cold the others are all there is, and as own events come they take over.

    Shapes:
        own, others: `residual_sums` of the events in the row's domain and in all others, each (B,)
        item_bias:   (B,) the item's mean less the overall one, as logits
        returns:     (B, CLICK_FEATURES): seen or not; the leaning in each mix; log counts; spread; leaning x item
    """
    seen = (own[2] + others[2] > 0).double()
    mixes = [(own[0] + discount * others[0]) / (own[2] + discount * others[2] + assumed) for discount, assumed in MIXES]
    counts = [torch.log1p(own[2]) / 5, torch.log1p(others[2]) / 5]
    spread = ((own[1] + others[1]) / (own[2] + others[2] + SHRINKAGE)).clamp(min=0).sqrt()
    features = torch.stack([seen, *mixes, *counts, spread, mixes[1] * item_bias.double()], 1)
    return features.to(item_bias.dtype)


def as_score(mean: Tensor, task: str) -> Tensor:
    """A mean label in the unit of the network's output: its logit for clicks, itself for ratings."""
    return torch.logit(mean.clamp(1e-4, 1 - 1e-4)) if task == "ctr" else mean

"""The wide part: what is expected of a row before any attention reads it, linear in a few wide features.

Three variants, one chosen when the network is built. Each sums up a user's own labels; `PlainWide` in three numbers
whose weights are trained as all others are, the others in more, whose weights are solved for in closed form.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.layers.embeddings import ItemTable, known
from models.layers.wide import (
    CLICK_FEATURES,
    LEVELS,
    PLAIN_FEATURES,
    RATING_FEATURES,
    as_score,
    click_features,
    plain_features,
    rating_features,
    residual_sums,
    value_shares,
)
from models.ranker.config import RankerConfig
from models.ranker.domain_adapter import DomainAdapter

Owners = Mapping[int, DomainAdapter]
"""What each domain of a batch owns, by slot."""


class WidePart(nn.Module):
    """score = mean of the item + features . (shared weights + the domain's own).

    ``source_values`` (source_items,) holds the mean value of each source item's events, as histories hold values.

    Shapes (n rows, F features): features (n, F), mean and score (n,), in the score's unit
    """

    source_values: Tensor
    solved = False
    """Whether the weights are solved for in closed form, and descent leaves them alone."""

    def __init__(self, config: RankerConfig, features: int) -> None:
        super().__init__()
        self.task = config.task
        self.weights = nn.Parameter(torch.zeros(features))
        self.register_buffer("source_values", torch.full((config.source_items,), config.mean_label))

    def forward(self, rows: Batch, owners: Owners, source_items: ItemTable) -> tuple[Tensor, Tensor]:
        """The features of rows, and the mean of each row's item."""
        raise NotImplementedError

    def score(self, features: Tensor, mean: Tensor, domain: Tensor, owners: Owners) -> Tensor:
        """What features and means give by each domain's weights."""
        return by_domain(domain, owners, lambda own: mean + features @ (self.weights + own.wide_weights))

    def item_mean(self, rows: Batch, owners: Owners, source_items: ItemTable) -> Tensor:
        """Mean label of each row's item, as a score."""
        return by_domain(
            rows.domain, owners, lambda own: as_score((own.items or source_items).mean_of(rows.item), self.task)
        )

    def item_bias(self, rows: Batch, mean: Tensor, items: ItemTable) -> Tensor:
        """The item's mean less the overall one. The offset is what a training row does without of it."""
        return mean + rows.offset - as_score(items.means[0], self.task)


class PlainWide(WidePart):
    """Mean residual of the user's labels, its spread and the event count."""

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config, PLAIN_FEATURES)

    def forward(self, rows: Batch, owners: Owners, source_items: ItemTable) -> tuple[Tensor, Tensor]:
        return plain_features(rows.lifelong, self.source_values), self.item_mean(rows, owners, source_items)


class RatingWide(WidePart):
    """Features of ratings: also the shares of bands of values, and products with the item's mean.

    ``value_edges`` (LEVELS - 1,) and ``usual_shares`` (LEVELS,) say where the bands lie and how often they are met.
    """

    value_edges: Tensor
    usual_shares: Tensor
    solved = True

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config, RATING_FEATURES)
        self.register_buffer("value_edges", torch.arange(1, LEVELS) + 0.5)
        self.register_buffer("usual_shares", torch.full((LEVELS,), 1 / LEVELS))

    def forward(self, rows: Batch, owners: Owners, source_items: ItemTable) -> tuple[Tensor, Tensor]:
        mean = self.item_mean(rows, owners, source_items)
        plain = plain_features(rows.lifelong, self.source_values)
        shares = value_shares(rows.lifelong, self.value_edges, self.usual_shares)
        features = by_domain(
            rows.domain,
            owners,
            lambda own: rating_features(plain, shares, self.item_bias(rows, mean, own.items or source_items)),
        )
        return features, mean


class ClickWide(WidePart):
    """Features of clicks: a user's leaning in the row's own domain and, at a discount, in all others.

    ``source_slot`` (source_items,) says which slot a source item belongs to; -1 for none.
    """

    source_slot: Tensor
    solved = True

    def __init__(self, config: RankerConfig) -> None:
        super().__init__(config, CLICK_FEATURES)
        self.register_buffer("source_slot", torch.full((config.source_items,), -1))

    def forward(self, rows: Batch, owners: Owners, source_items: ItemTable) -> tuple[Tensor, Tensor]:
        mean = self.item_mean(rows, owners, source_items)
        slots = {id(own): slot for slot, own in owners.items()}

        def features(own: DomainAdapter) -> Tensor:
            if own.items is None:
                # Events of a source domain lie among all others in the lifelong history.
                inside = self.source_slot[known(rows.lifelong.item, len(self.source_slot))] == slots[id(own)]
                mine = residual_sums(rows.lifelong, self.source_values, inside)
                others = residual_sums(rows.lifelong, self.source_values, ~inside)
            else:
                others = residual_sums(rows.lifelong, self.source_values)
                nothing = torch.zeros_like(others[0])
                mine = (nothing, nothing, nothing)
                if rows.short_target is not None and own.values is not None:
                    mine = residual_sums(rows.short_target, own.values)
            return click_features(mine, others, self.item_bias(rows, mean, own.items or source_items))

        return by_domain(rows.domain, owners, features), mean


def wide_part(config: RankerConfig) -> WidePart:
    """The variant that a config asks for."""
    if not config.wide:
        return PlainWide(config)
    return RatingWide(config) if config.task == "rating" else ClickWide(config)


def by_domain(domain: Tensor, owners: Owners, answer: Callable[[DomainAdapter], Tensor]) -> Tensor:
    """The answer (n, ...) of each row's domain (n,), of which each is asked for all rows."""
    (_, first), *others = owners.items()
    chosen = answer(first)
    for slot, own in others:
        here = (domain == slot).view(-1, *[1] * (chosen.dim() - 1))
        chosen = torch.where(here, answer(own), chosen)
    return chosen

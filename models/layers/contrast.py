"""Cross Representation Production: contrastive supervision that puts items of two domains into one space (LCN 4.1).

A user's tastes hold for a while and across domains. So two items of one user's short histories are a positive pair, and
items of different users are negative pairs: within the target domain (PT), within the source domains (PS), and one item
of each (PC, which builds the bridge). The loss is used in training only and costs nothing at inference.

    B  rows    S  longest short history    M  negative pairs of each type in a batch    D  embedding width
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Embed = Callable[[Tensor, Tensor], Tensor]
"""Vectors (n, D) of items (n,), given the rows (n,) whose histories they stand in."""

SHORTEST = 0.05
"""Length from which on only a vector's direction counts: below what items start at, above nothing."""

_SIDES = {"PT": ("T", "T"), "PS": ("S", "S"), "PC": ("T", "S")}


@dataclass(frozen=True)
class ContrastConfig:
    """How pairs are drawn and weighed.

    Attributes:
        negatives: M, pairs of each type shared by all positives of a batch.
        temperature: tau; the paper gives none. Below 0.1 a handful of the hardest negatives take all the gradient.
        denominator: ``seed`` is eqs. 3-5 as printed, without the positive; ``infonce`` adds it.
        target_weight, source_weight, cross_weight: lambda of PT, PS, PC; a type of weight 0 is not sampled.
        one_table: target and source items live in one table, so equal ids are one item in cross pairs too.
    """

    negatives: int = 4096
    temperature: float = 0.2
    denominator: Literal["seed", "infonce"] = "seed"
    target_weight: float = 1.0
    source_weight: float = 1.0
    cross_weight: float = 1.0
    one_table: bool = False

    def __post_init__(self) -> None:
        if self.negatives < 1 or self.temperature <= 0:
            raise ValueError(f"negatives {self.negatives} and temperature {self.temperature} must be positive")
        if min(self.target_weight, self.source_weight, self.cross_weight) < 0:
            raise ValueError("weights of pair types must not be negative")


@dataclass(frozen=True)
class ShortHistory:
    """The events of one side that pairs may be drawn from, ragged: those that are real and whose item is known.

    Shapes:
        item, row: (E,) long, the item and the row of each event, rows in order
        first, count: (B,) long, where a row's events begin and how many there are
    """

    item: Tensor
    row: Tensor
    first: Tensor
    count: Tensor

    @classmethod
    def of(cls, item: Tensor, mask: Tensor) -> ShortHistory:
        """From padded items (B, S) and their mask (B, S); item 0 is out of vocabulary and never drawn."""
        usable = mask & (item > 0)
        count = usable.sum(1)
        return cls(item[usable], usable.nonzero()[:, 0], torch.cumsum(count, 0) - count, count)

    def at(self, row: Tensor, generator: torch.Generator | None) -> Tensor:
        """One event of each row in ``row`` (n,), uniformly; each must have one."""
        return self.first[row] + _below(self.count[row], generator)

    def two_of(self, row: Tensor, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Two different events of each row in ``row`` (n,), uniformly; each must have two."""
        count = self.count[row]
        one, other = _below(count, generator), _below(count - 1, generator)
        return self.first[row] + one, self.first[row] + other + (other >= one).long()


@dataclass(frozen=True)
class Pairs:
    """Events (n,) of two short histories, side by side: pair i is (left[i], right[i])."""

    left: Tensor
    right: Tensor


class CrossRepresentation:
    """The CRP loss over a batch's short histories.

        loss = CrossRepresentation(ContrastConfig()).loss(
            target=(items, mask), source=(items, mask), user=batch.user,
            embed_target=lambda items, rows: table(items), embed_source=...,
        )

    Vectors are fetched for drawn items alone, in one call a side. Chance comes from ``generator``, or from torch's own,
    which the training loop seeds at every step.
    """

    def __init__(self, config: ContrastConfig | None = None) -> None:
        self.config = config or ContrastConfig()

    def loss(
        self,
        *,
        target: tuple[Tensor, Tensor] | None,
        source: tuple[Tensor, Tensor] | None,
        user: Tensor,
        embed_target: Embed,
        embed_source: Embed,
        domain: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor | None:
        """Weighted sum of the pair types that this batch allows, LCN eq. (6); None where it allows none.

        Args:
            target, source: items (B, S) long and mask (B, S) bool of each row's short histories; None where not kept.
            user: (B,) long. Negatives come from rows with different users, not from different rows of one.
            domain: (B,) long, where a batch mixes target domains: an item of one is no item of another.
        """
        terms = self.terms(
            target=target,
            source=source,
            user=user,
            embed_target=embed_target,
            embed_source=embed_source,
            domain=domain,
            generator=generator,
        )
        weights = self.config
        weight = {"PT": weights.target_weight, "PS": weights.source_weight, "PC": weights.cross_weight}
        parts = [weight[name] * value for name, value in terms.items()]
        return torch.stack(parts).sum() if parts else None

    def terms(
        self,
        *,
        target: tuple[Tensor, Tensor] | None,
        source: tuple[Tensor, Tensor] | None,
        user: Tensor,
        embed_target: Embed,
        embed_source: Embed,
        domain: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> dict[str, Tensor]:
        """L_PT: LCN eq. (3), L_PS: LCN eq. (4), L_PC: LCN eq. (5); a scalar each, of the types this batch allows."""
        sides: dict[str, ShortHistory] = {}
        if target is not None:
            sides["T"] = ShortHistory.of(*target)
        if source is not None:
            sides["S"] = ShortHistory.of(*source)
        drawn: dict[str, tuple[Pairs, Pairs]] = {}
        weights = {
            "PT": self.config.target_weight,
            "PS": self.config.source_weight,
            "PC": self.config.cross_weight,
        }
        for name, (left, right) in _SIDES.items():
            if weights[name] and left in sides and right in sides:
                found = self.draw(sides[left], sides[right], user, domain, generator)
                if found is not None:
                    drawn[name] = found
        asked: dict[str, list[Tensor]] = {"T": [], "S": []}
        for name, both in drawn.items():
            for pairs in both:
                asked[_SIDES[name][0]].append(pairs.left)
                asked[_SIDES[name][1]].append(pairs.right)
        vectors = {
            side: _Fetched(sides[side], embed, asked[side])
            for side, embed in (("T", embed_target), ("S", embed_source))
            if asked[side]
        }
        losses = {}
        for name, (positive, negative) in drawn.items():
            of_left, of_right = (vectors[side] for side in _SIDES[name])
            similar = (of_left(positive.left) * of_right(positive.right)).sum(1)
            foreign = (of_left(negative.left) * of_right(negative.right)).sum(1)
            losses[name] = pair_loss(similar, foreign, self.config.temperature, self.config.denominator)
        return losses

    def draw(
        self,
        left: ShortHistory,
        right: ShortHistory,
        user: Tensor,
        domain: Tensor | None,
        generator: torch.Generator | None,
    ) -> tuple[Pairs, Pairs] | None:
        """Positive pairs, one a row that has one, and M negative pairs; None where the batch has none of either."""
        within = left is right
        if within:
            rows = (left.count >= 2).nonzero()[:, 0]
            one, other = left.two_of(rows, generator)
        else:
            rows = ((left.count >= 1) & (right.count >= 1)).nonzero()[:, 0]
            one, other = left.at(rows, generator), right.at(rows, generator)
        compare = within or self.config.one_table
        if compare:
            apart = left.item[one] != right.item[other]
            one, other = one[apart], other[apart]
        left_rows, right_rows = (left.count >= 1).nonzero()[:, 0], (right.count >= 1).nonzero()[:, 0]
        if len(one) == 0 or len(right_rows) == 0:
            return None
        wanted = self.config.negatives
        tries = 2 * wanted  # most draws are good: one round finds enough but in tiny batches
        first = left_rows[_below(torch.full((tries,), len(left_rows), device=user.device), generator)]
        second = right_rows[_below(torch.full((tries,), len(right_rows), device=user.device), generator)]
        a, b = left.at(first, generator), right.at(second, generator)
        good = user[first] != user[second]
        if compare:
            same = left.item[a] == right.item[b]
            if within and domain is not None:
                same &= domain[first] == domain[second]
            good &= ~same
        found = good.nonzero()[:, 0]
        if len(found) == 0:
            return None
        found = found[torch.arange(wanted, device=found.device) % len(found)]
        return Pairs(one, other), Pairs(a[found], b[found])


def pair_loss(similar: Tensor, foreign: Tensor, temperature: float, denominator: Literal["seed", "infonce"]) -> Tensor:
    """Contrastive loss of positive similarities (P,) against shared negative ones (M,).

    ``seed`` is -mean(s+) / tau + logsumexp(s- / tau), which eqs. 3-5 come to, since the positive is not in their
    denominator and no negative is anchored to a row. It may be negative: its floor is -2 / tau + log M.
    """
    positive, crowd = similar / temperature, torch.logsumexp(foreign / temperature, 0)
    if denominator == "infonce":
        return (torch.logaddexp(positive, crowd) - positive).mean()
    return crowd - positive.mean()


def directions(vectors: Tensor) -> Tensor:
    """Vectors (..., D) at unit length, in float32, their products cosines; one shorter than ``SHORTEST`` stays shorter.

    A new domain's items start at zero, where a true cosine's gradient has no bound: one such item in a batch and, after
    clipping, nothing else would learn.
    """
    return F.normalize(vectors.float(), dim=-1, eps=SHORTEST)


class _Fetched:
    """Directions of a side's drawn events, fetched in one call, each event once."""

    def __init__(self, side: ShortHistory, embed: Embed, events: list[Tensor]) -> None:
        distinct = torch.unique(torch.cat(events))
        self.place = torch.empty_like(side.item)
        self.place[distinct] = torch.arange(len(distinct), device=distinct.device)
        self.vectors = directions(embed(side.item[distinct], side.row[distinct]))

    def __call__(self, events: Tensor) -> Tensor:
        return self.vectors.index_select(0, self.place[events])


def _below(bound: Tensor, generator: torch.Generator | None) -> Tensor:
    """A whole number from 0 to below each bound, uniformly."""
    chance = torch.rand(bound.shape, generator=generator, device=bound.device, dtype=torch.float64)
    return torch.minimum((chance * bound).long(), (bound - 1).clamp(min=0))

"""Short histories as sequences: the material of the self-supervised baselines, and the parts that they share.

N  sequences, one of each user in the batch      S  events, oldest first, padding at the end      D  width
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch, Events
from models.layers.contrast import directions
from models.ranker.network import Ranker

MAXIMUM_LENGTH = 64
DOMAIN_BITS = 40  # an item's number stays below


@dataclass(frozen=True)
class Sequences:
    """One side (target or source) of the batch's short histories.

    vectors: (N, S, D) item vectors; mask: (N, S) bool; action: (N, S) long
    identity: (N, S) long, equal for equal items and for no others of this side
    user: (N,) long
    look_up: vectors (n, D) of identities (n,), as they are now; also of items that this batch does not hold
    """

    vectors: Tensor
    mask: Tensor
    identity: Tensor
    action: Tensor
    user: Tensor
    look_up: Callable[[Tensor], Tensor]

    @property
    def length(self) -> Tensor:
        """Events of each sequence, (N,)."""
        return self.mask.sum(1)

    def of(self, index: Tensor) -> Self:
        """The sequences at ``index``, positions or a mask."""
        names = ("vectors", "mask", "identity", "action", "user")
        return replace(self, **{name: getattr(self, name)[index] for name in names})

    def at_least(self, events: int) -> Self:
        """The sequences of no fewer events."""
        return self.of(self.length >= events)

    def __len__(self) -> int:
        return len(self.user)


def sides(backbone: Ranker, batch: Batch) -> list[Sequences]:
    """The target and the source short histories of the batch, one of each user: that of their latest row."""
    rows = batch.rows(latest_row_of_each_user(batch))
    found = []
    if rows.short_target is not None:
        found.append(_sequences(backbone, rows, rows.short_target, rows.domain))
    if rows.short_source is not None:
        found.append(_sequences(backbone, rows, rows.short_source, None))
    return found


def latest_row_of_each_user(batch: Batch) -> Tensor:
    """Position of each user's latest row, (N,): several rows of one user are no several probe_rows."""
    order = torch.argsort(batch.time, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    users, number = torch.unique(batch.user, return_inverse=True)
    latest = rank.new_zeros(len(users)).scatter_reduce(0, number, rank, "amax")
    return order[latest]


def _sequences(backbone: Ranker, rows: Batch, events: Events, domain: Tensor | None) -> Sequences:
    shown = events.mask() & (events.item[events.row] > 0)  # an unknown item says nothing to compare
    order = torch.argsort((~shown).long(), dim=1, stable=True)  # real events to the front, in their order
    length = shown.sum(1)
    kept = min(MAXIMUM_LENGTH, int(length.max())) if len(length) else 0
    first = (length - kept).clamp(min=0)[:, None]
    place = order.gather(1, (first + torch.arange(kept, device=order.device)).clamp(max=max(0, order.shape[1] - 1)))
    mask = torch.arange(kept, device=order.device) < length[:, None]
    items, action = (part[events.row].gather(1, place) * mask for part in (events.item, events.action))
    if domain is None:
        return Sequences(backbone.embeddings.stored(items), mask, items, action, rows.user, backbone.embeddings.stored)
    identity = one_name(items, domain[:, None])

    def look_up(names: Tensor) -> Tensor:
        slot, item = names >> DOMAIN_BITS, names & (1 << DOMAIN_BITS) - 1
        found = backbone.embeddings.free_token.new_zeros(*names.shape, backbone.config.width)
        for number in torch.unique(slot).tolist():
            mine = slot == number
            own = backbone.embeddings.stored(item[mine], backbone.owned(number))
            found = found.masked_scatter(mine[..., None], own.to(found.dtype))
        return found

    return Sequences(look_up(identity), mask, identity, action, rows.user, look_up)


def one_name(item: Tensor, domain: Tensor) -> Tensor:
    """A number for an item that is the same in every batch and no other domain's: (...), (...) -> (...)."""
    return item + (domain << DOMAIN_BITS)


class SequenceEncoder(nn.Module):
    """A small transformer, (N, S, D) and mask (N, S) -> (N, S, D); if ``causal``, an event sees no later one."""

    def __init__(
        self, width: int, *, layers: int = 1, heads: int = 2, dropout: float = 0.1, causal: bool = True
    ) -> None:
        super().__init__()
        self.causal = causal
        self.position = nn.Parameter(torch.randn(MAXIMUM_LENGTH, width) * 0.02)
        block = nn.TransformerEncoderLayer(
            width, heads, dim_feedforward=4 * width, dropout=dropout, batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(block, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        # Layers copied from one start alike: draw each anew.
        for layer in self.blocks.layers:
            for part in layer.parameters():
                if part.dim() > 1:
                    nn.init.xavier_uniform_(part)

    def forward(self, vectors: Tensor, mask: Tensor) -> Tensor:
        length = vectors.shape[1]
        hidden = vectors + self.position[:length]
        later = torch.ones(length, length, dtype=torch.bool, device=mask.device).triu(1) if self.causal else None
        # An empty sequence would attend to nothing and give NaN: let it see its first padding; nobody reads it.
        padding = ~mask
        padding = torch.cat([padding[:, :1] & mask.any(1, keepdim=True), padding[:, 1:]], 1)
        return self.blocks(hidden, mask=later, src_key_padding_mask=padding)


def last(hidden: Tensor, mask: Tensor) -> Tensor:
    """The state at each sequence's last event, (N, S, D) -> (N, D)."""
    position = (mask.sum(1) - 1).clamp(min=0)
    return hidden.gather(1, position[:, None, None].expand(-1, 1, hidden.shape[-1]))[:, 0]


def pooled(vectors: Tensor, mask: Tensor) -> Tensor:
    """Mean over real events, (N, S, D) -> (N, D); zeros of none."""
    return (vectors * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def info_nce(
    anchor: Tensor, other: Tensor, *, temperature: float, same: Tensor | None = None, extra: Tensor | None = None
) -> Tensor:
    """In-batch InfoNCE of cosines: row i of ``anchor`` (N, D) belongs to row i of ``other`` (N, D).

    Args:
        same: (N, N + E) bool, pairs that are no negatives because they are of one item or user; the diagonal counts.
        extra: (E, D) further negatives for all.
    """
    if not len(anchor):
        return anchor.sum() * 0
    others = other if extra is None else torch.cat([other, extra])
    logits = directions(anchor) @ directions(others).T / temperature
    diagonal = torch.arange(len(anchor), device=anchor.device)
    if same is not None:
        same = same.clone()
        same[diagonal, diagonal] = False
        logits = logits.masked_fill(same, float("-inf"))
    return F.cross_entropy(logits, diagonal)


def equal(one: Tensor, other: Tensor | None = None) -> Tensor:
    """Which ids are equal, (N,) and (M,) -> (N, M) bool."""
    return one[:, None] == (one if other is None else other)[None]


def some(mask: Tensor, most: int) -> Tensor:
    """At most ``most`` of the True positions, drawn at random; the same shape."""
    if int(mask.sum()) <= most:
        return mask
    chance = torch.rand(mask.numel(), device=mask.device).masked_fill(~mask.flatten(), -1.0)
    kept = torch.zeros_like(mask.flatten())
    kept[chance.topk(most).indices] = True
    return kept.view_as(mask)


@dataclass(frozen=True)
class Pool:
    """The distinct items of a side, as candidates of a softmax that was sampled by the batch.

    vectors: (P, D); place: (N, S) long, where each event's item stands in the pool
    """

    vectors: Tensor
    place: Tensor

    @classmethod
    def of(cls, side: Sequences, most: int, keep: Tensor) -> Pool:
        """All items of the side, or those of events ``keep`` (N, S) and a draw of the others, ``most`` in all."""
        identity = side.identity.masked_fill(~side.mask, -1)
        distinct, place = torch.unique(identity, return_inverse=True)
        # One event of each item lends its vector: they are all the same.
        event = torch.arange(identity.numel(), device=identity.device)
        lender = event.new_zeros(len(distinct)).scatter_reduce(0, place.flatten(), event, "amax", include_self=False)
        wanted = torch.zeros(len(distinct), dtype=torch.bool, device=identity.device)
        wanted[place[keep & side.mask]] = True
        chance = torch.rand(len(distinct), device=identity.device) + wanted  # those that must be come first
        chance[distinct < 0] = -1  # padding is no item
        chosen = chance.topk(min(max(most, int(wanted.sum())), int((distinct >= 0).sum()))).indices
        where = torch.zeros_like(distinct)
        where[chosen] = torch.arange(len(chosen), device=chosen.device)
        return cls(side.vectors.flatten(0, 1)[lender[chosen]], where[place])

"""The short views of LCN's main network: what the candidate finds in the latest events of either side."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers.target_attention import TargetAttention


@dataclass(frozen=True)
class ShortEvents:
    """A short history as rows see it.

    Shapes (C chunks, G cells a chunk, S events, N rows of a table):
        shared:  (C, S, D), what all rows of a chunk see of an event; all of it where there is no recency
        mask:    (C, G, S) bool
        recency: (C, G, S) long, row of ``table`` that each row sees beside it, or None
        table:   (N, D)
    """

    shared: Tensor
    mask: Tensor
    recency: Tensor | None
    table: Tensor


class ShortViews(nn.Module):
    """Short target and short source history against the candidate, each (C, G, D); zero where not given."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.target = TargetAttention(width)
        self.source = TargetAttention(width)

    def forward(self, target: ShortEvents | None, source: ShortEvents | None, candidate: Tensor) -> list[Tensor]:
        return [_view(self.target, target, candidate), _view(self.source, source, candidate)]


def _view(attention: TargetAttention, events: ShortEvents | None, candidate: Tensor) -> Tensor:
    if events is None:
        return torch.zeros_like(candidate)
    if events.recency is None:
        return attention(events.shared[:, None], events.mask, candidate)
    return attention.read(events.shared, events.recency, events.table, events.mask, candidate)

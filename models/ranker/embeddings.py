"""The embedding part: every table of the shared network, and the vectors that single look-ups give."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.layers.embeddings import EventContext, FieldEmbedding, ItemTable, RowTable
from models.ranker.config import RankerConfig
from models.ranker.domain_adapter import DomainAdapter


class Embeddings(nn.Module):
    """Items, features, users, events' contexts and domain features as vectors of one width D.

    Args:
        config: see RankerConfig
        source_item_codes: (source_items, F) long, feature codes of the source items; row 0 is the unknown item
    """

    def __init__(self, config: RankerConfig, source_item_codes: Tensor | None) -> None:
        super().__init__()
        width = config.width
        self.width, self.user_dropout = width, config.user_dropout
        self.source_items = ItemTable(
            config.source_items, width, source_item_codes, len(config.item_fields), mean=config.mean_label
        )
        self.item_fields = FieldEmbedding(config.item_fields, width)
        self.user_fields = FieldEmbedding(config.user_fields, width)
        self.context_fields = FieldEmbedding(config.context_fields, width)
        self.domain_fields = FieldEmbedding(config.domain_fields, width)
        self.free_token = nn.Parameter(torch.zeros(1, width))
        self.users = RowTable(config.users, width) if config.users else None
        self.event_context = EventContext(config.actions, width)

    def items_of(self, adapter: DomainAdapter) -> ItemTable:
        """The table that a domain's items live in: its own, or that of the source items."""
        return adapter.items or self.source_items

    def candidates(self, adapter: DomainAdapter, item: Tensor, features: Tensor) -> Tensor:
        """e_v of items of one domain: the row of its table plus their features. (...,) and (..., F) -> (..., D)."""
        return self.items_of(adapter).rows(item) + self.item_fields.sum(features)

    def stored(self, index: Tensor, adapter: DomainAdapter | None = None) -> Tensor:
        """Vectors of source items, or of a domain's, features read from the table's codes. (...,) -> (..., D)."""
        items = self.source_items if adapter is None else self.items_of(adapter)
        rows = items.rows(index)
        return rows + self.item_fields.sum(items.features(index)) if len(self.item_fields) else rows

    def domain_tokens(self, adapters: Sequence[DomainAdapter]) -> Tensor:
        """E_d of DACDR eq. (3) for K domains, (K, M, D): a token each domain feature and a free one."""
        codes = torch.stack([adapter.feature_codes for adapter in adapters])
        free = self.free_token.expand(len(adapters), -1, -1)
        tokens = torch.cat([self.domain_fields.tokens(codes), free], 1)
        return tokens + torch.stack([adapter.tokens for adapter in adapters])

    def profile(self, rows: Batch) -> Tensor:
        """Tokens of the user: profile fields and, where there is a user table, the user. (B, P, D)."""
        tokens = self.user_fields.tokens(rows.user_features)
        if self.users is None:
            return tokens
        user = rows.user
        if self.training and self.user_dropout:
            hidden = torch.rand(user.shape, device=user.device) < self.user_dropout
            user = torch.where(hidden, 0, user)
        return torch.cat([tokens, self.users(user)[:, None]], 1)

    def context(self, rows: Batch) -> Tensor:
        """Tokens of the context fields side by side, (B, C * D)."""
        return self.context_fields.tokens(rows.context).flatten(1)

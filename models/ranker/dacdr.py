"""DACDR's user side: two-step cross-attention over the source history, then the domain encoder (eqs. 1 to 6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from models.layers.cross_attention import (
    Answers,
    AttentionConfig,
    DomainAwareCrossAttention,
    DomainEncoder,
    Projections,
    StepWeights,
)
from models.layers.shared_history import History, Reading
from models.ranker.config import RankerConfig
from models.ranker.domain_adapter import DomainAdapter, DomainStack


class DACDR(nn.Module):
    """From a source history and a domain to û, the user as the domain and the item see them.

    Shapes (C chunks, G cells a chunk, M domain tokens, P side tokens):
        candidate e_v (C, G, D), profile (C, G, P, D), tokens E_d (C, M, D); û (C, G, D)
    """

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        attention = AttentionConfig(
            width=config.width,
            domain_tokens=config.domain_tokens,
            domain_attention=config.domain_attention,
            item_attention=config.item_attention,
            ia_memory=config.ia_memory,
            vacated=config.vacated,
        )
        self.attention = DomainAwareCrossAttention(attention)
        self.encoder = DomainEncoder(attention, item_tokens=1, hidden=config.encoder_hidden)

    def folded(self, adapters: Sequence[DomainAdapter]) -> tuple[StepWeights | None, StepWeights | None]:
        """W_Q, W_K, W_V of both steps for these domains (eq. 2), shared part and the domains' own."""
        domain_step, item_step = self.attention.domain_step, self.attention.item_step
        return (
            _folded(domain_step, [part.domain_weights for part in adapters]),
            _folded(item_step, [part.item_weights for part in adapters]),
        )

    def reading(self, history: History, candidate: Tensor, profile: Tensor, domain: DomainStack) -> Reading[Answers]:
        """T_d and T_i (eqs. 3 and 4) as a `Reading` of the history."""
        return self.attention.reading(
            history,
            domain.tokens,
            candidate[:, :, None],
            profile,
            domain_weights=domain.domain_weights,
            item_weights=domain.item_weights,
        )

    def forward(self, answers: Answers, tokens: Tensor, cells: int) -> Tensor:
        """û (eq. 6) from what `reading` answered."""
        return self.encoder(*answers, tokens, cells)


def _folded(step: Projections | None, own: Sequence[Tensor | None]) -> StepWeights | None:
    if step is None:
        return None
    return StepWeights.fold(step.weight, torch.stack([part for part in own if part is not None]))

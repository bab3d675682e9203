"""What one domain owns in a ranker: zero or the identity when fresh, so that it scores as the backbone does."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from models.layers.cross_attention import StepWeights
from models.layers.embeddings import ItemTable
from models.ranker.config import DomainConfig, RankerConfig


class DomainOwned(nn.Module):
    """Marks a module whose parameters and buffers belong to one domain alone."""


class Calibrator(nn.Module):
    """scale * score + shift: Platt scaling of a logit, an affine map of a rating; the identity when fresh."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.shift = nn.Parameter(torch.zeros(()))

    def forward(self, score: Tensor) -> Tensor:
        return score * self.scale + self.shift


class DomainAdapter(DomainOwned):
    """Everything that one domain owns; zero or the identity when fresh (and every item's mean the overall one).

    Shapes:
        tokens:                        (M, D), added to the shared domain tokens
        domain_weights, item_weights:  (3, D, D), added to the shared W_Q, W_K, W_V of each step
        wide_weights:                  (F,), added to the shared weights of the wide features
        feature_codes:                 (domain fields,) long
        items:                         the domain's own catalogue, or None
        values:                        (items,) mean value of each own item's events, where the wide part of clicks is
                                       solved for; else None
    """

    feature_codes: Tensor
    values: Tensor | None

    def __init__(self, ranker: RankerConfig, config: DomainConfig, item_codes: Tensor | None) -> None:
        super().__init__()
        if len(config.feature_codes) != len(ranker.domain_fields):
            raise ValueError(
                f"a domain needs {len(ranker.domain_fields)} feature codes, got {len(config.feature_codes)}"
            )
        if config.in_backbone and item_codes is not None:
            raise ValueError("a domain whose items live in the source table brings no item codes of its own")
        width = ranker.width
        self.config = config
        self.register_buffer("feature_codes", torch.tensor(config.feature_codes, dtype=torch.long))
        self.tokens = nn.Parameter(torch.zeros(ranker.domain_tokens, width))
        steps = (
            ranker.uses_cross_attention and ranker.domain_attention,
            ranker.uses_cross_attention and ranker.item_attention,
        )
        self.domain_weights = nn.Parameter(torch.zeros(3, width, width)) if steps[0] else None
        self.item_weights = nn.Parameter(torch.zeros(3, width, width)) if steps[1] else None
        self.wide_weights = nn.Parameter(torch.zeros(ranker.wide_features))
        self.calibrator = Calibrator()
        self.items: ItemTable | None = None
        if not config.in_backbone:
            self.items = ItemTable(
                config.items, width, item_codes, len(ranker.item_fields), scale=0.0, mean=ranker.mean_label
            )
        own_values = ranker.wide and ranker.task == "ctr" and not config.in_backbone
        self.register_buffer("values", torch.full((config.items,), ranker.mean_label) if own_values else None)

    def start_like(self, other: DomainAdapter) -> None:
        """Take over another domain's tokens and attention; items and calibration stay the domain's own."""
        with torch.no_grad():
            self.tokens.copy_(other.tokens)
            self.wide_weights.copy_(other.wide_weights)
            for mine, theirs in ((self.domain_weights, other.domain_weights), (self.item_weights, other.item_weights)):
                if mine is not None and theirs is not None:
                    mine.copy_(theirs)


@dataclass(frozen=True)
class DomainStack:
    """The owned tensors of K domains beside each other, ready for a batch that mixes them.

    Shapes:
        tokens: (K, M, D) whole domain tokens E_d, shared part and the domain's own
        domain_weights, item_weights: StepWeights of K domains, or None where the step is ablated
    """

    tokens: Tensor
    domain_weights: StepWeights | None
    item_weights: StepWeights | None

    def of(self, domain: Tensor | None, chunks: int) -> DomainStack:
        """What each chunk's domain owns, (C,) long into K; None where all chunks share the one domain."""
        return DomainStack(
            self.tokens.expand(chunks, -1, -1) if domain is None else self.tokens[domain],
            self.domain_weights and self.domain_weights.of(domain),
            self.item_weights and self.item_weights.of(domain),
        )

"""DACDR's two-step domain-aware cross-attention and its domain encoder (equations 1 to 6).

A history is first read with the domain's eyes, then with the item's. The keys' projection is folded into the query and
the values' projection is applied after pooling, so events are never projected:

    q W_Q (e W_K)^T = (q W_Q W_K^T) e^T        softmax(.) (e W_V) = (softmax(.) e) W_V
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

from models.embeddings import INITIAL_SCALE
from models.history import History

Memory = Literal["concat", "cascade", "rescale"]
Vacated = Literal["drop", "mean"]
Shares = tuple[Tensor, Tensor]
"""Attention over what is always there and over a history's events, which sum to one together."""


@dataclass(frozen=True)
class AttentionConfig:
    """Which of the paper's variants to build.

    domain_attention, item_attention: False for the ablations w/o DA, w/o IA.
    ia_memory: what step 2 attends over. ``concat`` [T_d ; X], ``cascade`` T_d alone, ``rescale`` L * alpha_l * S_l.
    vacated: what stands in the encoder in place of an ablated step: nothing (``drop``), or the mean of the history,
        which keeps the encoder's width (``mean``).
    """

    width: int
    domain_tokens: int
    domain_attention: bool = True
    item_attention: bool = True
    ia_memory: Memory = "concat"
    vacated: Vacated = "drop"

    def __post_init__(self) -> None:
        if self.ia_memory not in ("concat", "cascade", "rescale"):
            raise ValueError(f"ia_memory is concat, cascade or rescale, not {self.ia_memory!r}")
        if self.ia_memory == "cascade" and self.domain_attention and self.item_attention and self.domain_tokens < 2:
            # A softmax over one key is constant: step 2 would never learn W_Q and W_K.
            raise ValueError(
                "ia_memory='cascade' needs at least 2 domain tokens: over one token step 2 has no gradient"
            )


class Projections(nn.Module):
    """W_Q, W_K, W_V of one cross-attention step, shared by all domains; no biases, no norms (equation 2).

    Shapes:
        weight: (3, D, D), in the order query, key, value; vectors are rows, Q = A W_Q
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        bound = math.sqrt(3 / width)
        self.weight = nn.Parameter(torch.empty(3, width, width).uniform_(-bound, bound))


@dataclass(frozen=True)
class StepWeights:
    """Effective weights of one step for K domains: the shared projections plus each domain's own difference.

    Shapes:
        query_key: (K, D, D), W_Q W_K^T / sqrt(d)
        value:     (K, D, D), W_V
    """

    query_key: Tensor
    value: Tensor

    @classmethod
    def fold(cls, shared: Tensor, differences: Tensor) -> StepWeights:
        """From the shared (3, D, D) and the domains' differences (K, 3, D, D)."""
        query, key, value = (shared + differences).unbind(1)
        return cls(query @ key.transpose(1, 2) / math.sqrt(shared.shape[-1]), value)

    def of(self, domain: Tensor | None) -> StepWeights:
        """The weights of each chunk's domain, (C,) long into K; None where all chunks share the one domain."""
        return self if domain is None else StepWeights(self.query_key[domain], self.value[domain])


class DomainAwareCrossAttention(nn.Module):
    """Read a user's source history first with the domain's eyes, then with the item's (DACDR equations 3 and 4).

    Shapes (C chunks, G cells a chunk, V views a chunk, M domain tokens, Q item tokens, P side tokens, D width):
        history:            items (C, L, D), mask (C, V, L); see History
        domain_tokens:      (C, M, D)
        item_tokens:        (C, G, Q, D)
        side_tokens:        (C, G, P, D), always valid
        domain_weights,
        item_weights:       StepWeights of C chunks, or of the 1 domain that all chunks share
        returns:            domain view T_d (C, V, M, D), item view T_i (C, G, Q, D), mean of the history (C, V, 1, D);
                            a view is None where its step is ablated, the mean where nothing asks for it
    """

    def __init__(self, config: AttentionConfig) -> None:
        super().__init__()
        self.config = config
        self.domain_step = Projections(config.width) if config.domain_attention else None
        self.item_step = Projections(config.width) if config.item_attention else None
        # One learned event that every history holds, so that an empty one has something to read.
        self.null = nn.Parameter(torch.randn(config.width) * INITIAL_SCALE)

    def queries(
        self,
        domain_tokens: Tensor,
        item_tokens: Tensor,
        domain_weights: StepWeights | None,
        item_weights: StepWeights | None,
    ) -> list[Tensor]:
        """What each step that stands asks the history, keys' projection folded in: (C, 1, M, D) and (C, G, Q, D)."""
        queries = []
        if self.config.domain_attention:
            assert domain_weights is not None
            queries.append(project(domain_tokens, domain_weights.query_key)[:, None])
        if self.config.item_attention:
            assert item_weights is not None
            queries.append(project(item_tokens, item_weights.query_key))
        return queries

    def forward(
        self,
        history: History,
        domain_tokens: Tensor,
        item_tokens: Tensor,
        side_tokens: Tensor,
        domain_weights: StepWeights | None,
        item_weights: StepWeights | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        queries = self.queries(domain_tokens, item_tokens, domain_weights, item_weights)
        scores = history.item_scores_of(*queries)
        return self.answers(history, queries, scores, side_tokens, domain_weights, item_weights)

    def answers(
        self,
        history: History,
        queries: Sequence[Tensor],
        scores: Sequence[Tensor],
        side_tokens: Tensor,
        domain_weights: StepWeights | None,
        item_weights: StepWeights | None,
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """As `forward` from what `queries` gave, and their products with the history's items."""
        config = self.config
        domain_view = item_view = attention = None
        if domain_weights is not None and config.domain_attention:
            domain_view, attention = self._domain_view(history, queries[0], scores[0], domain_weights.value)
        if item_weights is not None and config.item_attention:
            memory = (side_tokens, domain_view, attention)
            item_view = self._item_view(history, queries[-1], scores[-1], *memory, item_weights.value)
        both = config.domain_attention and config.item_attention
        return domain_view, item_view, None if both else self.mean(history)

    def _domain_view(
        self, history: History, query: Tensor, scores: Tensor, value: Tensor
    ) -> tuple[Tensor, Shares | None]:
        """T_d of equation 3 and the attention over the null event, (C, V, M, 1), and S, (C, V, M, L)."""
        null = (query @ self.null)[..., None]
        views = history.views()
        if views is None:
            of_null, of_events = _softmax_beside(null, history.scores(query, scores), history.mask)
            pooled = history.pool(of_events) + of_null * self.null
            return project(pooled, value), (of_null, of_events)
        seen, of_row = history.seen_by(views), history.onto_context(query)
        joint = seen.context_scores_of(views.seen(of_row)).add_(views.seen(scores))  # [N, 1, M, L]
        of_null, of_events = _softmax_beside(views.seen(null), joint, seen.mask)
        of_items = views.one_by_one(history.item_pool(views.by_chunk(of_events)))
        pooled = of_items + seen.context_pool(of_events) + of_null * self.null
        answer = views.of_cells(project(pooled, value if len(value) == 1 else value[views.chunk]))
        if self.config.ia_memory != "rescale":  # which alone reads the shares
            return answer, None
        return answer, (views.of_cells(of_null), views.of_cells(of_events))

    def _item_view(
        self,
        history: History,
        query: Tensor,
        scores: Tensor,
        side: Tensor,
        domain_view: Tensor | None,
        attention: Shares | None,
        value: Tensor,
    ) -> Tensor:
        """T_i of equation 4 over the memory that the config asks for; ``scores`` are the query's with the items."""
        if domain_view is not None and self.config.ia_memory == "cascade":
            keys = domain_view.expand(-1, query.shape[1], -1, -1)
            return project((query @ keys.transpose(2, 3)).softmax(-1) @ keys, value)
        if attention is not None and self.config.ia_memory == "rescale":
            return project(self._rescaled(history, query, scores, attention), value)
        # Memory [T_d ; side information ; null ; S]: the first three are few and always valid.
        always = [] if domain_view is None else [domain_view.expand(-1, query.shape[1], -1, -1)]
        always += [side, self.null.expand(*query.shape[:2], 1, -1)]
        few = torch.cat(always, 2)[:, :, None]  # [C, G, 1, M + P + 1, D]
        # Products with so few rows are many times faster as sums than as one small matrix product a cell.
        of_few, of_events = _softmax_beside(
            (query[..., None, :] * few).sum(-1), history.scores(query, scores), history.mask
        )
        return project((of_few[..., None] * few).sum(3) + history.pool(of_events), value)

    def _rescaled(self, history: History, query: Tensor, scores: Tensor, attention: Shares) -> Tensor:
        """Pooled memory L * alpha_l * S_l, alpha the first step's attention averaged over the domain tokens."""
        length = history.mask.sum(-1)[..., None, None] + 1  # valid events and the null one
        null_scale, scale = (part.mean(2, keepdim=True) * length for part in attention)  # [C, V, 1, 1 or L]
        scores = history.scores(query, scores) * scale
        null = (query @ self.null)[..., None] * null_scale
        of_null, of_events = _softmax_beside(null, scores, history.mask)
        return history.pool(of_events * scale) + of_null * null_scale * self.null

    def mean(self, history: History) -> Tensor:
        """Mean of the valid events and the null one, (C, V, 1, D)."""
        valid = history.mask[:, :, None].to(history.items.dtype)
        return (history.pool(valid) + self.null) / (valid.sum(-1, keepdim=True) + 1)


class DomainEncoder(nn.Module):
    """û = MLP_enc([vec T_d ; vec T_i ; vec E_d]) (equation 6), one hidden layer.

    Shapes:
        domain_view (C, V, M, D), item_view (C, G, Q, D), mean (C, V, 1, D), domain_tokens (C, M, D)
        returns:    (C, G, D)
    """

    def __init__(self, config: AttentionConfig, item_tokens: int, hidden: int) -> None:
        super().__init__()
        self.config = config
        steps = (config.domain_attention, config.item_attention)
        sizes = (config.domain_tokens, item_tokens)
        width = config.domain_tokens
        if config.vacated == "mean":
            width += sum(sizes)
        else:
            width += sum(size for step, size in zip(steps, sizes, strict=True) if step) or 1
        self.item_tokens = item_tokens
        self.layers = nn.Sequential(nn.Linear(width * config.width, hidden), nn.ReLU(), nn.Linear(hidden, config.width))

    def forward(
        self,
        domain_view: Tensor | None,
        item_view: Tensor | None,
        mean: Tensor | None,
        domain_tokens: Tensor,
        cells: int,
    ) -> Tensor:
        config = self.config
        parts = [view for view in (domain_view, item_view) if view is not None]
        if mean is not None and (config.vacated == "mean" or not parts):
            # The mean of the history fills each vacated place, or stands alone where both steps are gone.
            places = 1 if config.vacated == "drop" else 0
            if config.vacated == "mean":
                places = (0 if config.domain_attention else config.domain_tokens) + (
                    0 if config.item_attention else self.item_tokens
                )
            parts.append(mean.expand(-1, -1, places, -1))
        parts.append(domain_tokens[:, None])
        # Each part passes the first layer as often as it differs: the domain's once a view.
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        flat = sorted(
            zip((part.flatten(2) for part in parts), self._columns(parts), strict=True),
            key=lambda pair: -pair[0].shape[1],
        )
        hidden = F.linear(flat[0][0], first.weight[:, flat[0][1]], first.bias).expand(-1, cells, -1)
        for part, columns in flat[1:]:
            hidden = hidden + F.linear(part, first.weight[:, columns])
        return self.layers[1:](hidden)

    @staticmethod
    def _columns(parts: list[Tensor]) -> Iterator[slice]:
        """Which inputs of the first layer each part (C, V, tokens, D) is."""
        at = 0
        for part in parts:
            size = part.shape[2] * part.shape[3]
            yield slice(at, at + size)
            at += size


def project(x: Tensor, weights: Tensor) -> Tensor:
    """Rows of each chunk through the chunk's own matrix: (C, ..., D) and (C or 1, D, E) -> (C, ..., E)."""
    if weights.shape[0] == 1:
        return x @ weights[0]
    return torch.bmm(x.reshape(x.shape[0], -1, x.shape[-1]), weights).view(*x.shape[:-1], weights.shape[-1])


class _SoftmaxBeside(Function):
    """Softmax of [few ; many] where some of the many are hidden; these get exactly no share and so no gradient."""

    @staticmethod
    def forward(ctx: Any, few: Tensor, many: Tensor, hidden: Tensor) -> Shares:
        count = few.shape[-1]
        joined = torch.cat([few, many], -1)
        joined[..., count:].masked_fill_(hidden, -torch.inf)
        share = joined.softmax(-1)
        ctx.save_for_backward(share)
        ctx.kind = joined.dtype
        return share[..., :count], share[..., count:]

    @staticmethod
    def backward(ctx: Any, of_few: Tensor, of_many: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (share,) = ctx.saved_tensors
        given = torch.cat([of_few, of_many], -1)
        joined = torch.ops.aten._softmax_backward_data(given, share, -1, share.dtype).to(ctx.kind)
        count = of_few.shape[-1]
        return joined[..., :count], joined[..., count:], None


def _softmax_beside(few: Tensor, many: Tensor, mask: Tensor) -> Shares:
    """Softmax over always-valid scores (C, V, Q, F) and those that rows may see, (C, V, Q, L), mask (C, V, L)."""
    cells = max(few.shape[1], many.shape[1], mask.shape[1])
    few, many = (part.expand(-1, cells, -1, -1) for part in (few, many))
    kind = torch.promote_types(few.dtype, many.dtype)
    return _SoftmaxBeside.apply(few.to(kind), many.to(kind), ~mask[:, :, None])

"""DACDR's two-step domain-aware cross-attention and its domain encoder (DACDR eqs. 1 to 6).

A history is first read with the domain's eyes, then with the item's. The keys' projection is folded into the query and
the values' projection is applied after pooling, so events are never projected:

    q W_Q (e W_K)^T = (q W_Q W_K^T) e^T        softmax(.) (e W_V) = (softmax(.) e) W_V
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd import Function

from models.layers.embeddings import INITIAL_SCALE
from models.layers.row_groups import RowGroups
from models.layers.shared_history import History, Reading, read, times

Memory = Literal["concat", "cascade", "rescale"]
Vacated = Literal["drop", "mean"]
Answers = tuple[Tensor | None, Tensor | None, Tensor | None]
"""Domain view, item view, and the mean of the history; see `DomainAwareCrossAttention`."""


@dataclass(frozen=True)
class AttentionConfig:
    """Which of the paper's variants to build.

    domain_attention, item_attention: False for the ablations w/o DA, w/o IA.
    ia_memory: what step 2 attends over. ``concat`` [T_d ; X], ``cascade`` T_d alone, ``rescale`` L *
    alpha_l * S_l.
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
    """W_Q, W_K, W_V of one cross-attention step, shared by all domains; no biases, no norms: DACDR eq. (2).

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
        """From the shared (3, D, D) and the domains' differences (K, 3, D, D): W of DACDR eq. (2)."""
        query, key, value = (shared + differences).unbind(1)
        return cls(query @ key.transpose(1, 2) / math.sqrt(shared.shape[-1]), value)

    def of(self, domain: Tensor | None) -> StepWeights:
        """The weights of each chunk's domain, (C,) long into K; None where all chunks share the one domain."""
        return self if domain is None else StepWeights(self.query_key[domain], self.value[domain])


class DomainAwareCrossAttention(nn.Module):
    """Read a user's source history first with the domain's eyes, then with the item's (DACDR eqs. 3 and 4).

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

    def forward(
        self,
        history: History,
        domain_tokens: Tensor,
        item_tokens: Tensor,
        side_tokens: Tensor,
        *,
        domain_weights: StepWeights | None,
        item_weights: StepWeights | None,
    ) -> Answers:
        return read(
            history,
            self.reading(
                history,
                domain_tokens,
                item_tokens,
                side_tokens,
                domain_weights=domain_weights,
                item_weights=item_weights,
            ),
        )[0]

    def reading(
        self,
        history: History,
        domain_tokens: Tensor,
        item_tokens: Tensor,
        side_tokens: Tensor,
        *,
        domain_weights: StepWeights | None,
        item_weights: StepWeights | None,
    ) -> Reading[Answers]:
        """`forward` as a `Reading`, so that others can read the history in the same products."""
        config = self.config
        queries = []
        if config.domain_attention:
            assert domain_weights is not None
            queries.append(project(domain_tokens, domain_weights.query_key)[:, None])  # [C, 1, M, D]
        if config.item_attention:
            assert item_weights is not None
            queries.append(project(item_tokens, item_weights.query_key))  # [C, G, Q, D]
        scores = yield queries
        steps = []
        if config.domain_attention:
            steps.append(self._domain_step(history, queries[0], scores[0]))
        cascades = config.domain_attention and config.ia_memory == "cascade"
        if config.item_attention and not cascades:
            steps.append(self._item_step(history, queries[-1], scores[-1], *steps))
        pooled = yield [step.asked() for step in steps]
        domain_view = item_view = None
        if config.domain_attention and domain_weights is not None:
            domain_view = self._domain_view(steps[0], pooled[0], domain_weights.value)
        if config.item_attention and item_weights is not None:
            query = queries[-1]
            if cascades and domain_view is not None:
                keys = domain_view.expand(-1, query.shape[1], -1, -1)
                item_view = (query @ keys.transpose(2, 3)).softmax(-1) @ keys
            else:
                item_view = self._item_view(steps[-1], pooled[-1], query, side_tokens, domain_view)
            item_view = project(item_view, item_weights.value)
        both = config.domain_attention and config.item_attention
        return domain_view, item_view, None if both else self.mean(history)

    def _domain_step(self, history: History, query: Tensor, scores: Tensor) -> _Step:
        """The softmax of DACDR eq. (3) over S, beside the null event: once for all cells that see the same."""
        null = (query @ self.null)[..., None]
        groups = history.row_groups()
        if groups is None:
            return _Step.over(history, history.scores(query, scores), null)
        seen, of_row = history.seen_by(groups), groups.seen(history.onto_context(query))
        return _Step.over(seen, seen.context_scores_of(of_row).add_(groups.seen(scores)), groups.seen(null), groups)

    def _domain_view(self, step: _Step, pooled: Tensor, value: Tensor) -> Tensor:
        """T_d = CA(E_d W_Q, S W_K, S W_V), DACDR eq. (3), (C, V, M, D)."""
        of_null, of_events = step.shares()
        pooled = of_events * step.pool(pooled) + of_null * self.null
        if step.groups is None:
            return project(pooled, value)
        return step.groups.of_cells(project(pooled, value if len(value) == 1 else value[step.groups.chunk]))

    def _item_step(self, history: History, query: Tensor, scores: Tensor, domain: _Step | None = None) -> _Step:
        """The item's attention over the events; ``rescale`` reads L * alpha_l * S_l, alpha averaged over the tokens."""
        scores, null = history.scores(query, scores), (query @ self.null)[..., None]
        if domain is None or self.config.ia_memory != "rescale":
            return _Step.over(history, scores, null)
        of_null, of_events = domain.shares()
        parts = (of_null, of_events * domain.weights)
        if domain.groups is not None:
            parts = (domain.groups.of_cells(parts[0]), domain.groups.of_cells(parts[1]))
        length = history.mask.sum(-1)[..., None, None] + 1  # valid events and the null one
        null_scale, scale = (part.mean(2, keepdim=True) * length for part in parts)  # [C, V, 1, 1 or L]
        step = _Step.over(history, scores * scale, null * null_scale)
        return replace(step, weights=step.weights * scale, null_scale=null_scale)

    def _item_view(
        self, step: _Step, pooled: Tensor, query: Tensor, side: Tensor, domain_view: Tensor | None
    ) -> Tensor:
        """T_i = CA(E_v W_Q, M W_K, M W_V), DACDR eq. (4), before W_V; M is what the config asks for."""
        if step.null_scale is not None:
            of_null, of_events = step.shares()
            return of_events * step.pool(pooled) + of_null * step.null_scale * self.null
        # Memory [T_d ; side information ; null ; S]: the first three are few and always valid.
        always = [] if domain_view is None else [domain_view.expand(-1, query.shape[1], -1, -1)]
        always += [side, self.null.expand(*query.shape[:2], 1, -1)]
        few = torch.cat(always, 2)[:, :, None]  # [C, G, 1, M + P + 1, D]
        # Products with so few rows are many times faster as sums than as one small matrix product a cell.
        of_few, of_events = step.shares((query[..., None, :] * few).sum(-1))
        return (of_few[..., None] * few).sum(3) + of_events * step.pool(pooled)

    def mean(self, history: History) -> Tensor:
        """Mean of the valid events and the null one, (C, V, 1, D)."""
        valid = history.mask[:, :, None].to(history.items.dtype)
        return (history.pool(valid) + self.null) / (valid.sum(-1, keepdim=True) + 1)


class DomainEncoder(nn.Module):
    """û = MLP_enc([vec T_d ; vec T_i ; vec E_d]), DACDR eq. (6), one hidden layer.

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
        # Each part passes the first layer as often as it differs: the domain's own tokens once a chunk.
        first = self.layers[0]
        assert isinstance(first, nn.Linear)
        flat = [part.flatten(2) for part in parts]
        columns = first.weight.split([part.shape[2] for part in flat], 1)
        hidden: Tensor = first.bias
        for part, weight in zip(flat, columns, strict=True):
            hidden = hidden + times(part, weight.t())
        return self.layers[1:](hidden.expand(-1, cells, -1))


def project(x: Tensor, weights: Tensor) -> Tensor:
    """Rows of each chunk through the chunk's own matrix: (C, ..., D) and (C or 1, D, E) -> (C, ..., E)."""
    if weights.shape[0] == 1:
        return times(x, weights[0])
    return torch.bmm(x.reshape(x.shape[0], -1, x.shape[-1]), weights).view(*x.shape[:-1], weights.shape[-1])


@dataclass(frozen=True)
class _Step:
    """CA(Q, K, V) = softmax(Q K^T / sqrt(d) + mask) V, DACDR eq. (1), which waits for what its items are pooled to.

    Keys that are always there, the null event among them, come in later: beside them all events together count as one
    key whose score is ``total``.

    Shapes (C chunks, or N groups of cells that see the same; V views a chunk, 1 of those N):
        history:    as the views see it
        weights:    (C, V, Q, L), over the events alone; 0 for all where none is seen
        total:      (C, V, Q, 1), log of the sum of the exponentials of the scores
        null:       (C, V, Q, 1), the null event's score
        groups:     of the cells, where weights are those of N groups
        null_scale: (C, V, 1, 1), what the null event is multiplied with, or None
    """

    history: History
    weights: Tensor
    total: Tensor
    null: Tensor
    groups: RowGroups | None = None
    null_scale: Tensor | None = None

    @classmethod
    def over(cls, history: History, scores: Tensor, null: Tensor, groups: RowGroups | None = None) -> _Step:
        """From scores of events (C, V, Q, L)."""
        weights, total = _SoftmaxOfSeen.apply(scores, history.mask[:, :, None])
        return cls(history, weights, total, null, groups)

    def shares(self, few: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Attention over keys that are always there, by default the null event, and over all events together."""
        few = self.null if few is None else few
        cells = max(few.shape[1], self.total.shape[1])
        joined = torch.cat([part.expand(-1, cells, -1, -1) for part in (few, self.total)], -1).softmax(-1)
        return joined[..., :-1], joined[..., -1:]

    def asked(self) -> Tensor:
        """The weights that the chunks' items are to be pooled with."""
        return self.weights if self.groups is None else self.groups.by_chunk(self.weights)

    def pool(self, items: Tensor) -> Tensor:
        """Whole events pooled, (C, V, Q, D), from the items pooled with `asked`."""
        items = items if self.groups is None else self.groups.one_by_one(items)
        return items + self.history.context_pool(self.weights)


class _SoftmaxOfSeen(Function):
    """Softmax of (C, V, Q, L) scores where some are hidden, 0 for these, and the log of the sum of exponentials."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        kind = torch.promote_types(scores.dtype, torch.float32)
        weights = torch.where(seen, scores.to(kind), -torch.inf)
        top = weights.amax(-1, keepdim=True).clamp_(min=torch.finfo(kind).min)  # finite where nothing is seen
        total = weights.sub_(top).exp_().sum(-1, keepdim=True)
        weights.div_(total.clamp(min=1))  # the best event alone adds one
        ctx.save_for_backward(weights)
        return weights, total.log_().add_(top)

    @staticmethod
    def backward(ctx: Any, of_weights: Tensor, of_total: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (weights,) = ctx.saved_tensors
        mean = (of_weights * weights).sum(-1, keepdim=True)
        return (of_weights - mean.sub_(of_total)).mul_(weights), None

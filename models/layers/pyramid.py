"""LCN's lifelong attention pyramid (section 4.2, LCN eqs. 7 to 13): the whole history, then K1 events, then K2.

Complete-scope attention (CSA) scores every event by a plain product. Median-scope attention (MSA) reads the best K1
with their context. Focused-scope attention (FSA) reads the best K2 with several heads. The three answers are
concatenated, so gradients reach each level although a top-K carries none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from models.layers.shared_history import History, Reading, read, times

Norm = Literal["none", "1/n_valid", "softmax"]
Level = Literal["csa", "msa", "fsa"]
LEVELS: tuple[Level, ...] = ("csa", "msa", "fsa")


@dataclass(frozen=True)
class PyramidConfig:
    """Sizes and readings of the pyramid.

    k1, k2: events that MSA and FSA read.
    levels: which levels stand; with none a ranker has the short views alone. Without "msa" FSA reads CSA's best K2.
        Without "csa" its product still selects, but gives no answer of its own: ("fsa",) is the two-stage search that
        the paper compares with.
    norm: how the raw weighted sums of CSA and MSA (LCN eqs. 8 and 10) are held: as written (``none``), divided by the
        number of events summed (the default: no drift with the length), or a softmax of the scores.
    reading: LCN eqs. 11 to 13 clash in shape. "A" is the standard decoder, one row; "B" passes each weighted event
        through the feed-forward layer and averages.
    """

    k1: int = 200
    k2: int = 50
    heads: int = 4
    levels: tuple[Level, ...] = LEVELS
    norm: Norm = "1/n_valid"
    reading: Literal["A", "B"] = "A"
    feed_forward: int = 4

    def __post_init__(self) -> None:
        if any(level not in LEVELS for level in self.levels):
            raise ValueError(f"levels are some of {LEVELS}, got {self.levels}")
        if self.norm not in ("none", "1/n_valid", "softmax"):
            raise ValueError(f"norm is none, 1/n_valid or softmax, not {self.norm!r}")
        if self.reading not in ("A", "B"):
            raise ValueError(f"reading is A or B, not {self.reading!r}")
        if self.k1 < 1 or self.k2 < 1 or ("msa" in self.levels and self.k2 > self.k1):
            raise ValueError(f"need 1 <= k2 <= k1, got k1={self.k1}, k2={self.k2}")

    @classmethod
    def named(cls, name: str) -> PyramidConfig:
        """The paper's LCN-200-50 and LCN-500-100, or any LCN-<K1>-<K2>."""
        parts = name.lower().split("-")
        if len(parts) != 3 or parts[0] != "lcn" or not all(part.isdigit() for part in parts[1:]):
            raise ValueError(f"a pyramid is named LCN-<K1>-<K2>, not {name!r}")
        return cls(k1=int(parts[1]), k2=int(parts[2]))

    def without(self, *levels: Level) -> PyramidConfig:
        """The ablation that lacks these levels."""
        return replace(self, levels=tuple(level for level in self.levels if level not in levels))


@dataclass(frozen=True)
class Selection:
    """Events chosen for each row: positions (C, G, K) and which of them are real, (C, G, K) bool."""

    position: Tensor
    real: Tensor

    def mask(self, length: int) -> Tensor:
        """The chosen events as a mask over the history, (C, G, L)."""
        chosen = self.real.new_zeros(*self.position.shape[:2], length)
        return chosen.scatter(2, self.position, self.real)


class Pyramid(nn.Module):
    """Three levels of attention over a lifelong history.

    Shapes (C chunks, G cells a chunk, L events, D width):
        history:    see History
        candidate:  (C, G, D)
        returns:    (C, G, len(levels) * D), in the order of the levels
    """

    def __init__(self, config: PyramidConfig, width: int) -> None:
        super().__init__()
        self.config = config
        self.msa = MedianScopeAttention(width, config.norm) if "msa" in config.levels else None
        self.fsa = FocusedScopeAttention(config, width) if "fsa" in config.levels else None

    def forward(self, history: History, candidate: Tensor) -> Tensor:
        return self.read(history, candidate)[0]

    def read(self, history: History, candidate: Tensor) -> tuple[Tensor, Selection]:
        """The answer and the last selection that was made (FSA's events)."""
        answers, selection = read(history, self.reading(history, candidate))[0]
        return torch.cat(answers, -1), selection

    def reading(self, history: History, candidate: Tensor) -> Reading[tuple[list[Tensor], Selection]]:
        """`read` as a `Reading` that goes beside others on the same history; the levels' answers apart."""
        config = self.config
        mask = history.mask.expand(-1, candidate.shape[1], -1)
        queries = [candidate]
        if self.msa is not None:
            queries.append(self.msa.of_item(candidate))
        scores = yield [query[:, :, None] for query in queries]
        raw, *of_items = (part.squeeze(2) for part in scores)  # LCN eq. (7): r_k = e_k . e_v, [C, G, L]
        weights: dict[Level, Tensor] = {}
        if "csa" in config.levels:
            weights["csa"] = _weights(raw, mask, config.norm)[:, :, None]
        if self.msa is not None:
            mask = _best_mask(raw, mask, config.k1) if config.k1 < mask.shape[2] else mask
            of_context = history.context_scores_of(self.msa.of_context(candidate, history)).squeeze(2)
            raw = history.together(of_items[0], of_context)
            weights["msa"] = _weights(raw, mask, config.norm)[:, :, None]
        pooled = yield list(weights.values())
        answers: dict[Level, Tensor] = dict(zip(weights, pooled, strict=True))
        if "csa" in weights:
            answers["csa"] = answers["csa"].squeeze(2)  # LCN eq. (8): sum of r_k e_k
        if self.msa is not None:
            answers["msa"] = self.msa.answer(answers["msa"], history, weights["msa"])
        selection = _best(raw if self.msa is not None else _later_first(raw, mask), mask, config.k2)
        if self.fsa is not None:
            answers["fsa"] = self.fsa(history, candidate, selection)
        return [answers[level] for level in LEVELS if level in answers], selection

    @torch.no_grad()
    def consistency(self, history: History, candidate: Tensor, top: int = 50) -> tuple[Tensor, Tensor]:
        """Share of the final level's own ``top`` events that the earlier levels hand on (section 5.2.2).

        "Own" means after scoring the whole history with the final level's parameters, the mean of its heads' logits.
        Returns the share (C, G) and which rows it means something for: those with more than ``top`` events.

        Raises:
            ValueError: the pyramid has no FSA.
        """
        if self.fsa is None:
            raise ValueError("consistency compares with FSA, which this pyramid lacks")
        mask = history.mask.expand(-1, candidate.shape[1], -1)
        own = _best(self.fsa.logits(history, candidate), mask, top).mask(mask.shape[2])
        raw = history.item_scores(candidate[:, :, None])[:, :, 0]
        handed = mask
        if self.msa is not None:
            handed = _best(raw, mask, self.config.k1).mask(mask.shape[2])
            raw = self.msa(history, candidate, handed)[1]
        found = _best(raw, handed, top).mask(mask.shape[2])
        return (own & found).sum(-1) / top, mask.sum(-1) > top


class MedianScopeAttention(nn.Module):
    """Raw scaled products with item and context, no softmax: LCN eq. (9) and LCN eq. (10).

    W_K and W_V read the concatenation (item ‖ context); they are kept as two halves, so each half folds into its query.

    Shapes:
        history: see History; candidate (C, G, D); mask (C, G, L), the events that CSA handed on
        returns: (C, G, D) and the scores (C, G, L)
    """

    def __init__(self, width: int, norm: Norm) -> None:
        super().__init__()
        self.norm = norm
        self.query = _matrix(width, width)
        self.key = _matrix(2 * width, width)
        self.value = _matrix(2 * width, width)

    def forward(self, history: History, candidate: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        of_item, of_context = self.of_item(candidate)[:, :, None], self.of_context(candidate, history)
        scores = (history.item_scores(of_item) + history.context_scores_of(of_context)).squeeze(2)
        weights = _weights(scores, mask, self.norm)[:, :, None]
        return self.answer(history.item_pool(weights), history, weights), scores

    def of_item(self, candidate: Tensor) -> Tensor:
        """Queries for the items, the keys' projection folded in, (C, G, D)."""
        return times(candidate, self._folded(0))

    def of_context(self, candidate: Tensor, history: History) -> Tensor:
        """Queries for the context, the keys' projection and the history's context folded in, (C, G, 1, K)."""
        return times(candidate, history.onto_context(self._folded(1)))[:, :, None]

    def _folded(self, half: int) -> Tensor:
        return self.query @ self.key.chunk(2)[half].t() / math.sqrt(len(self.query))

    def answer(self, items: Tensor, history: History, weights: Tensor) -> Tensor:
        """(C, G, D) from the items pooled with these weights, (C, G, 1, D) and (C, G, 1, L)."""
        of_item, of_context = self.value.chunk(2)
        context = times(history.context_mass(weights), history.from_context(of_context))
        return (times(items, of_item) + context).squeeze(2)


class FocusedScopeAttention(nn.Module):
    """Multi-head attention of the candidate over K2 events, then a feed-forward layer (LCN eqs. 11 to 13).

    Shapes (H heads of D / H):
        history: see History; candidate (C, G, D); selection of K events; returns (C, G, D)
    """

    def __init__(self, config: PyramidConfig, width: int) -> None:
        super().__init__()
        if width % config.heads:
            raise ValueError(f"width {width} cannot be split into {config.heads} heads")
        self.heads = config.heads
        self.reading = config.reading
        self.query = _matrix(width, width)
        self.key = _matrix(2 * width, width)
        self.value = _matrix(2 * width, width)
        hidden = config.feed_forward * width
        self.feed_forward = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, width))

    def forward(self, history: History, candidate: Tensor, selection: Selection) -> Tensor:
        chunks, cells, count = selection.position.shape
        width = candidate.shape[-1]
        if count == history.items.shape[1] and self.reading == "A":
            # All events are chosen: they are read where they lie, once for all rows of a chunk.
            chosen, real, shape = history, selection.mask(count)[:, :, None], (chunks, cells)
        else:
            chosen, real = history.chosen(selection.position), selection.real.reshape(-1, 1, 1, count)
            shape = (chunks * cells, 1)
        of_item, of_context = (reading.reshape(*shape, self.heads, -1) for reading in self._readings(candidate, chosen))
        # [C, G, H, K], or [C * G, 1, H, K]
        scores = chosen.together(chosen.item_scores(of_item), chosen.context_scores_of(of_context))
        # LCN eq. (11). A row without events attends to nothing: its weights are 0, not undefined.
        weights = scores.masked_fill(~real, torch.finfo(scores.dtype).min).softmax(-1) * real
        if self.reading == "A":
            value_of_item, value_of_context = self.value.chunk(2)
            heads = self._each_head(chosen.item_pool(weights), value_of_item)
            heads = heads + self._each_head(chosen.context_mass(weights), chosen.from_context(value_of_context))
            return self.feed_forward(heads).view(chunks, cells, width)  # LCN eq. (12); LCN eq. (13) leaves one row
        value = self.value.view(2 * width, self.heads, width // self.heads)
        events = torch.cat([chosen.items, chosen.context_vectors()[:, 0]], -1)
        rows = torch.einsum("rke,ehf->rkhf", events, value) * weights[:, 0].transpose(1, 2)[..., None]
        each = self.feed_forward(rows.flatten(2)) * real[:, 0].transpose(1, 2)  # [C*G, K, D]
        # LCN eq. (13), the mean of the K2 rows
        return (each.sum(1) / real.sum(-1)[:, 0].clamp(min=1)).view(chunks, cells, width)

    def _each_head(self, pooled: Tensor, value: Tensor) -> Tensor:
        """What each head pooled through its own columns of ``value``: (..., H, E) and (E, D) -> (rows, D)."""
        # Laid out with zeros between the heads, they are one product.
        return pooled.reshape(-1, self.heads * len(value)) @ torch.block_diag(*value.chunk(self.heads, 1))

    def logits(self, history: History, candidate: Tensor) -> Tensor:
        """Mean over heads of the pre-softmax logits of every event, (C, G, L)."""
        of_item, of_context = (reading.mean(2, keepdim=True) for reading in self._readings(candidate, history))
        return (history.item_scores(of_item) + history.context_scores_of(of_context))[:, :, 0]

    def _readings(self, candidate: Tensor, history: History) -> tuple[Tensor, Tensor]:
        """Queries of all heads, the keys' projection folded in: for items (C, G, H, D), for context (C, G, H, K)."""
        width = candidate.shape[-1]
        size = width // self.heads
        query = self.query.view(width, self.heads, size)
        key = self.key.view(2 * width, self.heads, size)
        folded = torch.einsum("dhf,ehf->dhe", query, key) / math.sqrt(size)  # [D, H, 2D]
        of_item, of_context = folded.chunk(2, -1)
        return tuple(  # type: ignore[return-value]
            times(candidate, part.flatten(1)).unflatten(-1, (self.heads, -1))
            for part in (of_item, history.onto_context(of_context))
        )


def _best(scores: Tensor, mask: Tensor, count: int) -> Selection:
    """The ``count`` best visible events; padding is -inf before the choice and marked where there were too few."""
    if count >= scores.shape[-1]:
        return Selection(torch.arange(scores.shape[-1], device=scores.device).expand(mask.shape), mask)
    hidden = _hidden(scores, mask)
    if not _ranks(hidden):
        best = hidden.topk(count, dim=-1, sorted=False)
        return Selection(best.indices, best.values > -torch.inf)
    ranked = _ranked(hidden)
    chosen = ranked >= _threshold_of(ranked, count)
    tied = chosen.sum(-1) != count
    if bool(tied.any()):
        among = ranked[tied].topk(count, dim=-1, sorted=False).indices
        chosen[tied] = torch.zeros_like(ranked[tied], dtype=torch.bool).scatter_(-1, among, value=True)
    position = (chosen.reshape(-1).nonzero()[:, 0] % scores.shape[-1]).view(*scores.shape[:2], count)
    return Selection(position, mask.gather(-1, position))


def _best_mask(scores: Tensor, mask: Tensor, count: int) -> Tensor:
    """The ``count`` best visible events and all that tie with the last of them, (C, G, L).

    One item may stand in a history many times, with other context each time, and CSA cannot tell these apart. Taking
    all of them keeps the choice free of their order and of rounding.
    """
    hidden = _hidden(scores, mask)
    return (hidden >= _threshold(hidden, min(count, scores.shape[-1])) - _rounding(scores, mask)) & mask


def _hidden(scores: Tensor, mask: Tensor) -> Tensor:
    """The scores that rows may see, and -inf for the others."""
    return torch.where(mask, scores.detach(), -torch.inf)


def _threshold(hidden: Tensor, count: int) -> Tensor:
    """The ``count``-th largest score of each row, (C, G, 1); anything below all scores where fewer are visible."""
    if not _ranks(hidden):
        return hidden.topk(count, dim=-1, sorted=False).values.amin(-1, keepdim=True)
    return _threshold_of(_ranked(hidden), count)


def _ranks(hidden: Tensor) -> bool:
    """Whether numpy ranks these scores: it partitions with the processor's vectors, two to six times faster."""
    return hidden.device.type == "cpu" and hidden.dtype == torch.float32 and bool(hidden.numel())


def _ranked(hidden: Tensor) -> Tensor:
    """Equal numbers would make a partition slow, so those that stand for hidden events all differ."""
    length = hidden.shape[-1]
    below = torch.arange(length, dtype=torch.float32).add_(1).mul_(torch.finfo(torch.float32).min / (2 * length))
    return torch.maximum(hidden, below)


def _threshold_of(ranked: Tensor, count: int) -> Tensor:
    """The ``count``-th largest number of each row, (C, G, 1)."""
    place = ranked.shape[-1] - count
    return torch.from_numpy(np.partition(ranked.numpy(), place, axis=-1)[..., place, None].copy())


def _later_first(scores: Tensor, mask: Tensor) -> Tensor:
    """Scores in which the later of two equal ones is ahead by more than rounding."""
    position = torch.arange(scores.shape[-1], device=scores.device)
    return scores.detach() + _rounding(scores, mask) * position


def _rounding(scores: Tensor, mask: Tensor) -> Tensor:
    """By how much equal scores of a row may differ, (C, G, 1)."""
    largest = torch.where(mask, scores.detach(), 0).abs().amax(-1, keepdim=True)
    # Equal events stay equal in half precision too, where eps would call a good part of a history a tie.
    eps = torch.finfo(torch.promote_types(scores.dtype, torch.float32)).eps
    return 8 * eps * largest


def _weights(scores: Tensor, mask: Tensor, norm: Norm) -> Tensor:
    """Scores as pooling weights, 0 outside the mask."""
    if norm == "softmax":
        return scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1) * mask
    seen = mask.to(scores.dtype)
    return scores * (seen if norm == "none" else seen / seen.sum(-1, keepdim=True).clamp(min=1))


def _matrix(rows: int, columns: int) -> nn.Parameter:
    return nn.Parameter(nn.init.xavier_uniform_(torch.empty(rows, columns)))

"""Baselines on the lifelong history: SIM (soft search), ETA, SDIM and TWIN.

All but SDIM are two stages: a general search unit (GSU) scores every event cheaply and hands on K of them, an exact
search unit (ESU) attends to those with several heads. They differ in how the GSU scores. Embeddings, K, heads, short
histories and MLP are the same for all. Padding never competes: it is set to -inf before any top-K.

    q  the candidate      e_k  item vector of event k      H  heads      K  events handed on
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypedDict, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.baselines.inputs import Baseline, BaselineConfig, Read, masked_softmax, mlp
from models.batch import Batch
from models.layers.contrast import ContrastConfig, CrossRepresentation
from models.training.loop import task_loss


@dataclass(frozen=True)
class Chosen:
    """Events handed on: positions in the stored history and which are real, both (..., K)."""

    position: Tensor
    real: Tensor


def best(score: Tensor, mask: Tensor, count: int) -> Chosen:
    """The ``count`` highest scoring visible events, (..., L) -> (..., K); padding is taken only when events run out.

    Of equal scores the later event wins. A history repeats items, so ties are common, and a plain top-K would settle
    them by the layout of memory: differently with other padding.
    """
    bits = (score.detach().float().masked_fill(~mask, float("-inf")) + 0.0).view(torch.int32)
    rising = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()  # integers in the order of the floats
    position = torch.arange(score.shape[-1], device=score.device)
    chosen = ((rising << 32) + position).topk(min(count, score.shape[-1]), dim=-1).indices
    return Chosen(chosen, mask.gather(-1, chosen))


class ExactSearch(nn.Module):
    """Multi-head attention of the candidate over few events: query (B, D), tokens (B, K, D), real (B, K) -> (B, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} cannot be split into {heads} heads")
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))

    def logits(self, query: Tensor, tokens: Tensor) -> Tensor:
        """Scores before the softmax, (B, H, K)."""
        asked = self.query(query).unflatten(-1, (self.heads, -1))
        keys = self.key(tokens).unflatten(-1, (self.heads, -1))
        return torch.einsum("bhd,bkhd->bhk", asked, keys) / math.sqrt(asked.shape[-1])

    def forward(self, query: Tensor, tokens: Tensor, real: Tensor) -> Tensor:
        weight = masked_softmax(self.logits(query, tokens), real[:, None])
        values = self.value(tokens).unflatten(-1, (self.heads, -1))
        return self.out(torch.einsum("bhk,bkhd->bhd", weight, values).flatten(1))


class LifelongOptions(TypedDict, total=False):
    """What every lifelong baseline takes: K, the heads, and LCN's cross representation production ("+CRP") or None."""

    handed_on: int
    heads: int
    contrast: ContrastConfig | None


class Lifelong(Baseline):
    """The common part: features, what the long history says of the candidate, and the MLP over both."""

    def __init__(
        self,
        config: BaselineConfig,
        item_codes: Tensor | None = None,
        *,
        handed_on: int = 50,
        heads: int = 4,
        contrast: ContrastConfig | None = None,
    ) -> None:
        super().__init__(config, item_codes)
        self.handed_on = handed_on
        self.heads = heads
        self.contrast = None if contrast is None else CrossRepresentation(contrast)
        size = self.inputs.size + config.width * (1 + config.product)
        self.network = mlp([size, *config.hidden, 1], config.dropout, last_linear=True)

    def architecture(self, read: Read, batch: Batch) -> Tensor:
        """What the long history says of the candidate, (B, D)."""
        raise NotImplementedError

    def personal(self, batch: Batch) -> Tensor:
        read = self.inputs(batch, lifelong=True)
        architecture = self.architecture(read, batch)
        parts = [read.features, architecture]
        if self.config.product:
            parts.append(architecture * read.candidate)
        return self.network(torch.cat(parts, -1))[:, 0]

    def auxiliary_loss(self, batch: Batch) -> Tensor | None:
        """CRP over the short histories, where the baseline carries it (LCN eqs. 3-6)."""
        if self.contrast is None:
            return None
        source, target = self.inputs.short_source_of(batch), batch.short_target
        return self.contrast.loss(
            target=None if target is None else (target.item[target.row], target.mask()),
            source=(source.item[source.row], source.mask()),
            user=batch.user,
            embed_target=lambda item, row: self.inputs.item_vectors(self.inputs.own_rows(item, batch.domain[row])),
            embed_source=lambda item, _: self.inputs.item_vectors(item),
            domain=batch.domain,
        )


class TwoStage(Lifelong):
    """GSU, then ESU. Subclasses say how the GSU scores events."""

    def __init__(
        self, config: BaselineConfig, item_codes: Tensor | None = None, **options: Unpack[LifelongOptions]
    ) -> None:
        super().__init__(config, item_codes, **options)
        self.exact = ExactSearch(config.width, self.heads)

    def search(self, candidate: Tensor, events: Tensor) -> Tensor:
        """GSU scores: candidate (B, D), event items (B, L, D) -> (B, L)."""
        raise NotImplementedError

    def architecture(self, read: Read, batch: Batch) -> Tensor:
        assert read.lifelong is not None
        chosen = best(self.search(read.candidate, read.lifelong), batch.lifelong.mask(), self.handed_on)
        items = _gathered(read.lifelong, chosen.position)
        return self.exact(
            read.candidate, self.inputs.tokens(items, batch.lifelong, batch, chosen.position), chosen.real
        )

    @torch.no_grad()
    def consistency(self, batch: Batch, top: int = 50) -> tuple[Tensor, Tensor]:
        """Share of the ESU's own ``top`` events that the GSU hands on (LCN section 5.2.2), (B,); and for whom it says
        something: rows with more than ``top`` events. "Own" is by the heads' mean logit over the whole history."""
        read = self.inputs(batch, lifelong=True)
        assert read.lifelong is not None
        mask = batch.lifelong.mask()
        tokens = self.inputs.tokens(read.lifelong, batch.lifelong, batch)
        own = _as_mask(best(self.exact.logits(read.candidate, tokens).mean(1), mask, top), mask)
        handed = _as_mask(best(self.search(read.candidate, read.lifelong), mask, top), mask)
        return (own & handed).sum(-1) / top, mask.sum(-1) > top


class SIMSoft(TwoStage):
    """Search-based architecture model with soft search (Pi et al. 2020): r_k = (W_a q)·(W_b e_k).

    A top-K carries no gradient, so the search learns by a click model of its own on [Σ_k r_k e_k ; q], which is
    `auxiliary_loss`. The sum is divided by the number of events, or it would drift with the length of the history.
    """

    def __init__(
        self, config: BaselineConfig, item_codes: Tensor | None = None, **options: Unpack[LifelongOptions]
    ) -> None:
        super().__init__(config, item_codes, **options)
        self.ask = nn.Linear(config.width, config.width, bias=False)
        self.answer = nn.Linear(config.width, config.width, bias=False)
        self.judge = mlp([2 * config.width, config.hidden[-1], 1], last_linear=True)

    def search(self, candidate: Tensor, events: Tensor) -> Tensor:
        # (W_a q)·(W_b e) = (W_bᵀ W_a q)·e: nothing of size L x D is computed but the product itself.
        return torch.einsum("bd,bld->bl", self.ask(candidate) @ self.answer.weight, events)

    def auxiliary_loss(self, batch: Batch) -> Tensor:
        """The search unit's own loss, and CRP where the baseline carries it."""
        contrast = super().auxiliary_loss(batch)
        search = self.search_loss(batch)
        return search if contrast is None else search + contrast

    def search_loss(self, batch: Batch) -> Tensor:
        """Loss of the search unit's own answer; the two projections learn from nothing else, so its weight is free."""
        candidate = self.inputs.candidates(batch)
        events = self.inputs.item_vectors(batch.lifelong.item[batch.lifelong.row])
        mask = batch.lifelong.mask()
        score = self.search(candidate, events) * mask
        pooled = torch.einsum("bl,bld->bd", score, events) / mask.sum(-1, keepdim=True).clamp(min=1)
        output = self.judge(torch.cat([pooled, candidate], -1))[:, 0] + self.inputs.expected(batch) + batch.offset
        return task_loss(output, batch, self.config.task)


class ETA(TwoStage):
    """End-to-end target attention (Chen et al. 2021): hash every vector to signs, h = 1[eR > 0], and search by Hamming.

    R is drawn once and saved with the weights, so that scores are the same in training, in evaluation and after a
    reload.
    """

    rotation: Tensor

    def __init__(
        self,
        config: BaselineConfig,
        item_codes: Tensor | None = None,
        *,
        bits: int = 32,
        **options: Unpack[LifelongOptions],
    ) -> None:
        super().__init__(config, item_codes, **options)
        self.register_buffer("rotation", torch.randn(config.width, bits))

    @torch.no_grad()
    def search(self, candidate: Tensor, events: Tensor) -> Tensor:
        asked, stored = self.signs(candidate), self.signs(events)
        return (torch.einsum("bm,blm->bl", asked, stored) - self.rotation.shape[1]) / 2  # minus the distance

    def signs(self, vector: Tensor) -> Tensor:
        """The hash as ±1, (..., bits): their product counts equal less unequal bits."""
        return (vector @ self.rotation > 0).to(vector.dtype) * 2 - 1


class SDIM(Lifelong):
    """Sampling is all you need (Cao et al. 2022): attention by counting hash collisions, over the whole history.

    out = mean_g ℓ2(Σ_k [hash_g(e_k) = hash_g(q)] e_k), each of the G hashes made of ``bits`` signs; an empty bucket
    gives 0. Over draws of the hashes an event is in q's bucket with probability (1 - θ/π)^bits, θ the angle between the
    two. As the paper: 48 signs, three a hash. They are drawn once and saved with the weights.
    """

    rotation: Tensor

    def __init__(
        self,
        config: BaselineConfig,
        item_codes: Tensor | None = None,
        *,
        signs: int = 48,
        bits: int = 3,
        **options: Unpack[LifelongOptions],
    ) -> None:
        super().__init__(config, item_codes, **options)
        if signs % bits:
            raise ValueError(f"{signs} signs cannot be parted into hashes of {bits}")
        self.bits = bits
        self.register_buffer("rotation", torch.randn(config.width, signs))

    @torch.no_grad()
    def hashes(self, vector: Tensor) -> Tensor:
        """Bucket numbers, (..., D) -> (..., G) long."""
        sign = (vector @ self.rotation > 0).unflatten(-1, (-1, self.bits))
        return (sign * 2 ** torch.arange(self.bits, device=vector.device)).sum(-1)

    def architecture(self, read: Read, batch: Batch) -> Tensor:
        assert read.lifelong is not None
        same = self.hashes(read.candidate)[:, None] == self.hashes(read.lifelong)  # [B, L, G]
        same = same & batch.lifelong.mask()[..., None]
        buckets = torch.einsum("blg,bld->bgd", same.to(read.lifelong.dtype), read.lifelong)
        return F.normalize(buckets, dim=-1).mean(1)


class TWIN(Lifelong):
    """Two-stage architecture network with one relevance for both stages (Chang et al. 2023).

    α_k = (W_h e_k)·(W_q q) / √d + β·c_k, where c_k stands for what is known of the event beside its item (the paper's
    cross features): action, value and recency. Each head hands on its own K best by α, and softmax(α) of the same α
    weighs their values, so that the search finds exactly what the attention wants.
    """

    def __init__(
        self, config: BaselineConfig, item_codes: Tensor | None = None, **options: Unpack[LifelongOptions]
    ) -> None:
        super().__init__(config, item_codes, **options)
        width, heads = config.width, self.heads
        if width % heads:
            raise ValueError(f"width {width} cannot be split into {heads} heads")
        self.query, self.key, self.value, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.context = nn.Linear(width, heads, bias=False)

    def relevance(self, read: Read, batch: Batch) -> Tensor:
        """α, (B, H, L)."""
        assert read.lifelong is not None
        heads, events = self.heads, batch.lifelong
        asked = self.query(read.candidate).unflatten(-1, (heads, -1))  # [B, H, d]
        keys = self.key.weight.unflatten(0, (heads, -1))  # [H, d, D]
        # W_h is folded into the query: (W_h e)·a = e·(W_hᵀ a).
        folded = torch.einsum("bhd,hde->bhe", asked, keys)
        alpha = torch.einsum("bhe,ble->bhl", folded, read.lifelong) / math.sqrt(asked.shape[-1])
        of_code = self.context(self.inputs.event_context.weight)  # [N, H], a number for each code instead of vectors
        action, value, time = (part[events.row] for part in (events.action, events.value, events.time))
        for code in self.inputs.event_context.codes(action, value, time, batch.time[:, None]):
            alpha = alpha + of_code[code[:, 0]].transpose(1, 2)
        return alpha

    def architecture(self, read: Read, batch: Batch) -> Tensor:
        assert read.lifelong is not None
        alpha = self.relevance(read, batch)
        mask = batch.lifelong.mask()[:, None].expand_as(alpha)
        chosen = best(alpha, mask, self.handed_on)  # [B, H, K]
        weight = masked_softmax(alpha.gather(-1, chosen.position), chosen.real)
        rows, heads, count = chosen.position.shape
        flat = chosen.position.flatten(1)
        tokens = self.inputs.tokens(_gathered(read.lifelong, flat), batch.lifelong, batch, flat)
        pooled = torch.einsum("bhk,bhkd->bhd", weight, tokens.view(rows, heads, count, -1))
        values = self.value.weight.unflatten(0, (heads, -1))  # [H, d, D]
        return self.out(torch.einsum("bhe,hde->bhd", pooled, values).flatten(1))


def _gathered(vectors: Tensor, position: Tensor) -> Tensor:
    """(B, L, D) at (B, K) -> (B, K, D)."""
    return vectors.gather(1, position[..., None].expand(-1, -1, vectors.shape[-1]))


def _as_mask(chosen: Chosen, mask: Tensor) -> Tensor:
    return torch.zeros_like(mask).scatter(-1, chosen.position, chosen.real)

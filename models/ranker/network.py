"""The composed network: embeddings, the user's architecture (DACDR, LCN or both), encoder, head.

    events ──► History ──► two-step cross-attention ──► domain encoder ──► û ─┐
                  └──────► pyramid (CSA, MSA, FSA) ───────────────────────────┤
    short target, short source ──► target attention ──────────────────────────┼──► head ──► + offset ──► logit or rating
    user profile, context, item ──────────────────────────────────────────────┘

What a domain owns (its tokens, its part of W_Q, W_K, W_V of both attention steps, its item rows, its calibrator) stands
in one `DomainAdapter`. All of it is zero or the identity at first, so a fresh domain scores as the backbone does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.batch import Batch, Events, arrange
from models.layers.contrast import CrossRepresentation
from models.layers.cross_attention import AttentionConfig, DomainAwareCrossAttention, DomainEncoder, StepWeights
from models.layers.embeddings import EventContext, FieldEmbedding, ItemTable, RowTable, context_vectors, known
from models.layers.mlp import first_layer, head_layers
from models.layers.pyramid import Pyramid
from models.layers.shared_history import History, Reading, Reads, read, stored_items
from models.layers.target_attention import TargetAttention
from models.layers.wide import (
    LEVELS,
    WIDE,
    as_score,
    click_facts,
    history_evidence,
    residual_sums,
    value_shares,
    wide_facts,
)
from models.ranker.config import DomainConfig, RankerConfig
from models.ranker.domain_adapter import DomainAdapter, DomainStack
from models.ranker.frozen_cache import FrozenCache

__all__ = ["DomainAdapter", "DomainConfig", "DomainStack", "Ranker", "RankerConfig", "TargetAttention"]

JOIN_FROM = 8  # rows on one view of a history from which its context is written out as vectors


@dataclass(frozen=True)
class ReadItems:
    """Vectors of the items that a batch speaks of.

    Shapes:
        candidate: (C * G, D)
        lifelong:  (C, L, D), to be read through `reads`
        short_source, short_target: (C, S, D) or None
    """

    candidate: Tensor
    lifelong: Tensor
    reads: Reads
    short_source: Tensor | None
    short_target: Tensor | None


class Ranker(nn.Module):
    """Scores (user, item, domain) rows.

    ``source_values`` (source_items,) holds the mean value of each source item's events, as histories hold values;
    ``source_slot`` (source_items,) says which slot's own a source item is, where facts of clicks are wide;
    ``value_edges`` (LEVELS - 1,) and ``usual_shares`` (LEVELS,) the bands of those values, where the facts are wide.

    Args:
        config: see RankerConfig
        source_item_codes: (source_items, F) long, feature codes of the source items; row 0 is the unknown item
    """

    source_values: Tensor
    value_edges: Tensor
    usual_shares: Tensor
    source_slot: Tensor

    def __init__(self, config: RankerConfig, source_item_codes: Tensor | None = None) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.source_items = ItemTable(
            config.source_items, width, source_item_codes, len(config.item_fields), mean=config.mean_label
        )
        self.register_buffer("source_values", torch.full((config.source_items,), config.mean_label))
        if config.wide and config.task == "ctr":
            self.register_buffer("source_slot", torch.full((config.source_items,), -1))
        elif config.wide:
            self.register_buffer("value_edges", torch.arange(1, LEVELS) + 0.5)
            self.register_buffer("usual_shares", torch.full((LEVELS,), 1 / LEVELS))
        self.item_fields = FieldEmbedding(config.item_fields, width)
        self.user_fields = FieldEmbedding(config.user_fields, width)
        self.context_fields = FieldEmbedding(config.context_fields, width)
        self.domain_fields = FieldEmbedding(config.domain_fields, width)
        self.free_token = nn.Parameter(torch.zeros(1, width))
        self.users = RowTable(config.users, width) if config.users else None
        self.event_context = EventContext(config.actions, width)
        self.attention: DomainAwareCrossAttention | None = None
        self.encoder: DomainEncoder | None = None
        if config.uses_cross_attention:
            attention = AttentionConfig(
                width=width,
                domain_tokens=config.domain_tokens,
                domain_attention=config.domain_attention,
                item_attention=config.item_attention,
                ia_memory=config.ia_memory,
                vacated=config.vacated,
            )
            self.attention = DomainAwareCrossAttention(attention)
            self.encoder = DomainEncoder(attention, item_tokens=1, hidden=config.encoder_hidden)
        self.pyramid = Pyramid(config.pyramid, width) if config.uses_pyramid and config.pyramid.levels else None
        self.short_target = TargetAttention(width) if config.uses_pyramid else None
        self.short_source = TargetAttention(width) if config.uses_pyramid else None
        self.head = head_layers(self._head_inputs() * width + config.facts, config.head)
        self.evidence = nn.Parameter(torch.zeros(config.facts))
        if config.wide and config.task == "rating":
            # What the facts say is solved for, not searched for: the network starts from nothing beside it. Clicks have
            # rows enough to move a network that starts at random, and it learns sooner.
            nn.init.zeros_(self.head[-1].weight)  # type: ignore[arg-type]
        self.domains = nn.ModuleList()
        self.tuned_slot: int | None = None
        self.kept: FrozenCache | None = None

    def _head_inputs(self) -> int:
        config = self.config
        vectors = 1 + len(config.user_fields) + (config.users > 0) + len(config.context_fields)
        if config.uses_cross_attention:
            vectors += 2 if config.product else 1  # û, and û ⊙ e_v
        else:
            vectors += config.domain_tokens  # the encoder is not there to read E_d
        if config.uses_pyramid:
            vectors += (len(config.pyramid.levels) + 2) * (2 if config.product else 1)
            vectors += config.product and config.users > 0  # the user's row ⊙ e_v
        return vectors

    def add_domain(self, config: DomainConfig, item_codes: Tensor | None = None, *, like: int | None = None) -> int:
        """Give a domain a slot; returns it. A fresh domain scores as the backbone does, or as slot ``like`` does.

        Raises:
            ValueError: the codes do not fit the ranker's fields, or a backbone slot would come after a target's, which
                would change its number when the backbone is loaded alone.
        """
        if config.in_backbone and any(not self.owned(slot).config.in_backbone for slot in range(len(self.domains))):
            raise ValueError("add the domains that use the source item table first: their slots belong to the backbone")
        adapter = DomainAdapter(self.config, config, item_codes).to(self.free_token)
        if like is not None:
            adapter.start_like(self.owned(like))
        if adapter.items is not None and self.config.wide and self.config.task == "ctr":
            adapter.values.fill_(self.source_values[0])
        adapter.train(self.training)
        self.domains.append(adapter)
        return len(self.domains) - 1

    def owned(self, slot: int) -> DomainAdapter:
        """What the domain in this slot owns."""
        if not 0 <= slot < len(self.domains):
            raise ValueError(f"no domain in slot {slot}; there are {len(self.domains)}")
        adapter = self.domains[slot]
        assert isinstance(adapter, DomainAdapter)
        return adapter

    def train(self, mode: bool = True) -> Self:
        """As nn.Module.train, but while one slot is tuned everything frozen stays in evaluation mode."""
        super().train(mode and self.tuned_slot is None)
        if self.tuned_slot is not None:
            self.owned(self.tuned_slot).train(mode)
        return self

    def rows_read(self, batch: Batch) -> list[tuple[RowTable, Tensor]]:
        """Tables and the indices into them that scoring or training on a batch looks up; a table may come often."""
        read = [(self.source_items.rows, batch.lifelong.item)]
        if batch.short_source is not None:
            read.append((self.source_items.rows, batch.short_source.item))
        if self.users is not None:
            read.append((self.users, batch.user))
        for slot in torch.unique(batch.domain).tolist():
            mine = batch.domain == slot
            table = (self.owned(slot).items or self.source_items).rows
            read.append((table, batch.item[mine]))
            if batch.short_target is not None:
                read.append((table, batch.short_target.item[batch.short_target.row[mine]]))
        return read

    # What a row is made of

    def item_vectors(self, slot: int, item: Tensor, item_features: Tensor) -> Tensor:
        """e_v of items of one domain: the row of its table plus its features. (...,) and (..., F) -> (..., D)."""
        items = self.owned(slot).items
        return (items or self.source_items).rows(item) + self.item_fields.sum(item_features)

    def source_item_vectors(self, index: Tensor) -> Tensor:
        """Vectors of items of the source table, features read from its codes. (...,) -> (..., D)."""
        return self._stored_item_vectors(self.source_items, index)

    def stored_item_vectors(self, slot: int, index: Tensor) -> Tensor:
        """Vectors of items of a domain's own table, features read from its codes. (...,) -> (..., D)."""
        return self._stored_item_vectors(self.owned(slot).items or self.source_items, index)

    def _stored_item_vectors(self, items: ItemTable, index: Tensor) -> Tensor:
        rows = items.rows(index)
        return rows + self.item_fields.sum(items.features(index)) if len(self.item_fields) else rows

    def stack(self, slots: Iterable[int]) -> DomainStack:
        """The owned tensors of these slots beside each other."""
        adapters = [self.owned(slot) for slot in slots]
        codes = torch.stack([adapter.feature_codes for adapter in adapters])
        free = self.free_token.expand(len(adapters), -1, -1)
        tokens = torch.cat([self.domain_fields.tokens(codes), free], 1)
        tokens = tokens + torch.stack([adapter.tokens for adapter in adapters])
        weights: list[StepWeights | None] = []
        for name in ("domain", "item"):
            step = getattr(self.attention, f"{name}_step", None)
            owned = [getattr(adapter, f"{name}_weights") for adapter in adapters]
            weights.append(None if step is None else StepWeights.fold(step.weight, torch.stack(owned)))
        return DomainStack(tokens, *weights)

    # Scoring

    def forward(self, batch: Batch, stack: DomainStack | None = None) -> Tensor:
        """Scores of the rows, (B,): logits for clicks, ratings otherwise; ``batch.offset`` is added.

        ``stack`` is that of all slots, made once by a scorer whose weights no longer change.
        """
        return self.hidden(batch, stack)[1]

    def hidden(self, batch: Batch, stack: DomainStack | None = None) -> tuple[Tensor, Tensor]:
        """What the last layer reads, (B, H), and the scores of `forward`, linear in it up to the plain facts."""
        last = self.head[-1]
        assert isinstance(last, nn.Linear)
        if not len(batch):
            return batch.offset.new_zeros(0, last.in_features), batch.offset.clone()
        cells, layout = arrange(batch)
        shape = (layout.chunks, layout.per_chunk)
        slot_of_chunk = cells.domain[:: layout.per_chunk]
        slots, place = torch.unique(slot_of_chunk, return_inverse=True)
        present = slots.tolist()
        if stack is None:
            stack = self.stack(present)
            domain = place if len(present) > 1 else None
        else:
            domain = slot_of_chunk
        items = self._read_items(cells, slot_of_chunk, present)
        candidate = items.candidate.view(*shape, -1)
        tokens = stack.tokens.expand(layout.chunks, -1, -1) if domain is None else stack.tokens[domain]

        kept = self.kept if self.kept is not None and cells.key is not None else None
        history = self._history(cells, shape, items)
        profile = self._profile(cells, shape)
        inputs = [candidate]
        if kept is None:
            inputs += [profile.flatten(2), self.context_fields.tokens(cells.context).view(*shape, -1)]
        # What both ask of the history's items is asked together, unless one chooses what the other sees.
        readings: list[Reading[Any]] = []
        views: list[Tensor] = []
        if self.pyramid is not None:
            readings.append(self.pyramid.reading(history, candidate))
            if self.config.architecture == "domain_over_pyramid":
                ((views, selection),) = read(history, *readings)
                history, readings = history.only(selection.mask(history.items.shape[1])), []
        if self.attention is not None:
            domain_weights = stack.domain_weights and stack.domain_weights.of(domain)
            item_weights = stack.item_weights and stack.item_weights.of(domain)
            asking = (tokens, candidate[:, :, None], profile, domain_weights, item_weights)
            readings.append(self.attention.reading(history, *asking))
        answers = read(history, *readings)
        if self.pyramid is not None and not views:
            views = answers[0][0]
        if self.config.uses_pyramid:
            views += self._short_views(cells, candidate, items)
        inputs += views
        if self.config.product:
            inputs += [view * candidate for view in views]
            if self.config.uses_pyramid and self.users is not None:
                inputs.append(profile[:, :, -1] * candidate)
        if self.attention is not None and self.encoder is not None:
            transferred = self.encoder(*answers[-1], tokens, layout.per_chunk)
            inputs += [transferred, transferred * candidate] if self.config.product else [transferred]
        else:
            inputs.append(tokens.flatten(1)[:, None].expand(-1, layout.per_chunk, -1))
        joined = torch.cat(inputs, -1).flatten(0, 1)
        first = self.head[0]
        assert isinstance(first, nn.Linear)
        if kept is None or cells.key is None:
            facts, mean = self._facts(cells, present)
            state = self.head[1:-1](first_layer(first, joined, facts))
        else:
            facts, mean = kept.wide.index_select(0, cells.key), kept.mean.index_select(0, cells.key)
            state = self.head[1:-1](kept.first_layer(joined, cells.key))
        score = last(state).view(-1) + self._expected(facts, mean, cells.domain, present)
        return layout.back(state), layout.back(score) + batch.offset

    def facts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What is known before any architecture is read, and what is expected of it.

        Shapes: (B, EVIDENCE or WIDE) facts of each row, and (B,) the score that they give with the item's mean, to
        which ``batch.offset`` is not yet added.
        """
        present = torch.unique(batch.domain).tolist()
        facts, mean = self._facts(batch, present)
        return facts, self._expected(facts, mean, batch.domain, present)

    def facts_and_mean(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The facts of `facts`, and each item's mean in the score's unit, (B,)."""
        return self._facts(batch, torch.unique(batch.domain).tolist())

    def standing(self, batch: Batch, facts: Tensor) -> Tensor:
        """The head's inputs that no weight of a target domain has a part in, (B, I), in the head's order."""
        alone = (len(batch), 1)
        context = self.context_fields.tokens(batch.context).flatten(1)
        return torch.cat([self._profile(batch, alone).flatten(1), context, facts], 1)

    def still_inputs(self) -> Tensor:
        """Which columns of the head's first layer read `standing`, (inputs,) bool."""
        first, facts = self.head[0], self.evidence.shape[0]
        assert isinstance(first, nn.Linear)
        vectors = len(self.config.user_fields) + (self.users is not None) + len(self.config.context_fields)
        still = torch.zeros(first.in_features, dtype=torch.bool)
        still[self.config.width : (1 + vectors) * self.config.width] = True
        still[first.in_features - facts :] = True
        return still

    def _facts(self, cells: Batch, present: list[int]) -> tuple[Tensor, Tensor]:
        if self.config.wide and self.config.task == "ctr":
            return self._click_facts(cells, present)
        evidence = history_evidence(cells.lifelong, self.source_values)
        shares = value_shares(cells.lifelong, self.value_edges, self.usual_shares) if self.config.wide else None
        given, means = evidence, evidence.new_zeros(len(cells))
        if shares is not None:
            given = evidence.new_zeros(len(cells), WIDE)
        for number in present:
            items = self.owned(number).items or self.source_items
            mean = as_score(items.mean_of(cells.item), self.config.task)
            facts = evidence
            if shares is not None:
                # The offset is what a training row does without of its item's mean: the facts do without it too.
                overall = as_score(items.means[0], self.config.task)
                facts = wide_facts(evidence, shares, mean + cells.offset - overall)
            here = cells.domain == number
            given = facts if len(present) == 1 else torch.where(here[:, None], facts, given)
            means = mean if len(present) == 1 else torch.where(here, mean, means)
        return given, means

    def _click_facts(self, cells: Batch, present: list[int]) -> tuple[Tensor, Tensor]:
        given = self.source_values.new_zeros(len(cells), self.config.facts)
        means = given.new_zeros(len(cells))
        for number in present:
            adapter = self.owned(number)
            items = adapter.items or self.source_items
            mean, overall = (as_score(part, self.config.task) for part in (items.mean_of(cells.item), items.means[0]))
            if adapter.items is None:
                # Events of a source domain lie among all others in the lifelong history.
                stored = cells.lifelong.item
                mine = self.source_slot[known(stored, len(self.source_slot))] == number
                own = residual_sums(cells.lifelong, self.source_values, mine)
                others = residual_sums(cells.lifelong, self.source_values, ~mine)
            else:
                others = residual_sums(cells.lifelong, self.source_values)
                own = tuple(torch.zeros_like(part) for part in others)  # type: ignore[assignment]
                if cells.short_target is not None:
                    own = residual_sums(cells.short_target, adapter.values)
            facts = click_facts(own, others, mean + cells.offset - overall)
            here = cells.domain == number
            given = facts if len(present) == 1 else torch.where(here[:, None], facts, given)
            means = mean if len(present) == 1 else torch.where(here, mean, means)
        return given, means

    def _expected(self, facts: Tensor, mean: Tensor, domain: Tensor, present: list[int]) -> Tensor:
        """Scores that facts and the items' means give by each domain's weights, (n,)."""
        expected = mean
        for number in present:
            own = mean + facts @ (self.evidence + self.owned(number).evidence)
            expected = own if len(present) == 1 else torch.where(domain == number, own, expected)
        return expected

    def probability(self, batch: Batch, stack: DomainStack | None = None) -> Tensor:
        """Calibrated answers, (B,): click probabilities, or ratings."""
        return self.calibrated(self(batch, stack), batch.domain)

    @torch.no_grad()
    def consistency(self, batch: Batch, top: int = 50) -> tuple[Tensor, Tensor]:
        """Share of FSA's own ``top`` events that the pyramid finds, (B,), and for whom it says something; see Pyramid.

        Raises:
            ValueError: there is no pyramid, or it has no FSA.
        """
        if self.pyramid is None:
            raise ValueError("consistency is a pyramid's, which this ranker lacks")
        cells, layout = arrange(batch)
        shape = (layout.chunks, layout.per_chunk)
        slot_of_chunk = cells.domain[:: layout.per_chunk]
        items = self._read_items(cells, slot_of_chunk, torch.unique(slot_of_chunk).tolist())
        history = self._history(cells, shape, items)
        share, counts = self.pyramid.consistency(history, items.candidate.view(*shape, -1), top)
        return layout.back(share.flatten()), layout.back(counts.flatten())

    def calibrated(self, score: Tensor, domain: Tensor) -> Tensor:
        """Scores of `forward` through the calibrator of each row's domain, and the sigmoid for clicks."""
        present, place = torch.unique(domain, return_inverse=True)
        if not len(present):
            return score
        calibrators = [self.owned(slot).calibrator for slot in present.tolist()]
        scale = torch.stack([calibrator.scale for calibrator in calibrators])
        shift = torch.stack([calibrator.shift for calibrator in calibrators])
        calibrated = score * scale[place] + shift[place]
        return calibrated.sigmoid() if self.config.task == "ctr" else calibrated

    def auxiliary_loss(self, batch: Batch) -> Tensor | None:
        """LCN's contrastive loss over the short histories (equations 3 to 6), where the config asks for it.

        None where it does not, or where the batch holds no pair. Inference never comes here.
        """
        if self.config.contrast is None:
            return None

        def shown(events: Events | None) -> tuple[Tensor, Tensor] | None:
            return None if events is None else (events.item[events.row], events.mask())

        def embed_target(item: Tensor, row: Tensor) -> Tensor:
            slot = batch.domain[row]
            vectors = self.free_token.new_zeros(len(item), self.config.width)
            for number in torch.unique(slot).tolist():
                mine = slot == number
                vectors = vectors.masked_scatter(mine[:, None], self.stored_item_vectors(number, item[mine]))
            return vectors

        return CrossRepresentation(self.config.contrast).loss(
            target=shown(batch.short_target),
            source=shown(batch.short_source),
            user=batch.user,
            embed_target=embed_target,
            embed_source=lambda item, _: self.source_item_vectors(item),
            domain=batch.domain,
        )

    def _read_items(self, cells: Batch, slot_of_chunk: Tensor, present: list[int]) -> ReadItems:
        """Vectors of all items that the batch speaks of, from one look-up of each table."""
        short_source = cells.short_source if self.short_source is not None else None
        short_target = cells.short_target if self.short_target is not None else None
        # Items of the row's own domain: candidates, then short target events.
        index = [cells.item]
        slots = [slot_of_chunk.repeat_interleave(len(cells) // len(slot_of_chunk))]
        if short_target is not None:
            index.append(short_target.item.reshape(-1))
            slots.append(slot_of_chunk.repeat_interleave(short_target.item.shape[1]))
        own, slot = torch.cat(index), torch.cat(slots)
        from_source = [number for number in present if self.owned(number).items is None]
        others = [own.new_zeros(0) if short_source is None else short_source.item.reshape(-1)]
        if from_source:
            inside = torch.isin(slot, torch.tensor(from_source, device=slot.device))
            others.append(torch.where(inside, own, 0))
        lifelong, rest, reads = stored_items(
            self.source_items, self.item_fields, cells.lifelong.item, torch.cat(others)
        )
        vectors = rest[len(others[0]) :] if from_source else rest.new_zeros(len(own), self.config.width)
        event_codes = cells.item_features.new_zeros(len(own) - len(cells), len(self.item_fields))
        for number in present:
            mine = slot == number
            table = self.owned(number).items
            if table is not None and len(present) == 1:
                vectors = table.rows(own)
            elif table is not None:
                vectors = vectors.masked_scatter(mine[:, None], table.rows(own[mine]))
            of_events = mine[len(cells) :]
            event_codes[of_events] = (table or self.source_items).features(own[len(cells) :][of_events])
        # Candidates bring their codes along; those of stored events are the catalogue's.
        codes = torch.cat([cells.item_features, event_codes])
        vectors = vectors + self.item_fields.sum(codes)

        def shaped(rows: Tensor, events: Events | None) -> Tensor | None:
            return None if events is None else rows.view(*events.item.shape, -1)

        source_rows = rest[: len(others[0])]
        if short_source is not None:
            source_rows = source_rows + self.item_fields.sum(self.source_items.features(others[0]))
        return ReadItems(
            vectors[: len(cells)],
            lifelong,
            reads,
            shaped(source_rows, short_source),
            shaped(vectors[len(cells) :], short_target),
        )

    def _history(self, cells: Batch, shape: tuple[int, int], items: ReadItems) -> History:
        """The lifelong history as attention reads it; one view a chunk where all its rows see the same."""
        events = cells.lifelong
        now, start, stop = (part.view(shape) for part in (cells.time, events.start, events.stop))
        if shape[1] > 1 and all(bool((part == part[:, :1]).all()) for part in (start, stop)):
            start, stop = start[:, :1], stop[:, :1]
            now = now[:, :1] if bool((now == now[:, :1]).all()) else now
        position = torch.arange(events.item.shape[1], device=events.item.device)
        mask = (position >= start[..., None]) & (position < stop[..., None])
        codes, table = self.event_context.paired(
            self.event_context.codes(events.action, events.value, events.time, now)
        )
        joined = None
        if shape[1] >= JOIN_FROM and now.shape[1] == 1:
            joined = context_vectors(torch.stack(torch.broadcast_tensors(*codes), -1), table)[:, 0]
        return History(items.lifelong, mask, codes, table, joined, items.reads)

    def _profile(self, cells: Batch, shape: tuple[int, int]) -> Tensor:
        """Tokens of the user: profile fields and, where there is a user table, the user. (C, G, P, D)."""
        tokens = self.user_fields.tokens(cells.user_features)
        if self.users is not None:
            user = cells.user
            if self.training and self.config.user_dropout:
                hidden = torch.rand(user.shape, device=user.device) < self.config.user_dropout
                user = torch.where(hidden, 0, user)
            tokens = torch.cat([tokens, self.users(user)[:, None]], 1)
        return tokens.view(*shape, -1, self.config.width)

    def _short_views(self, cells: Batch, candidate: Tensor, items: ReadItems) -> tuple[Tensor, Tensor]:
        """Short target and short source history against the candidate, each (C, G, D); zero where not given."""

        def view(attention: TargetAttention | None, events: Events | None, vectors: Tensor | None) -> Tensor:
            if attention is None or events is None or vectors is None:
                return torch.zeros_like(candidate)
            now = cells.time.view(candidate.shape[:2])
            codes, table = self.event_context.paired(
                self.event_context.codes(events.action, events.value, events.time, now)
            )
            *same, recency = codes
            shared = sum((F.embedding(code[:, 0], table) for code in same), vectors)
            return attention.read(shared, recency, table, events.mask().view(recency.shape), candidate)

        return (
            view(self.short_target, cells.short_target, items.short_target),
            view(self.short_source, cells.short_source, items.short_source),
        )

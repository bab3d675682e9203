"""The composed network: embeddings, the user's interest (DACDR, LCN or both), encoder, head.

    events ──► History ──► two-step cross-attention ──► domain encoder ──► û ─┐
                  └──────► pyramid (CSA, MSA, FSA) ───────────────────────────┤
    short target, short source ──► target attention ──────────────────────────┼──► head ──► + prior ──► logit or rating
    user profile, context, item ──────────────────────────────────────────────┘

What a domain owns (its tokens, its part of W_Q, W_K, W_V of both attention steps, its item rows, its calibrator) stands
in one `DomainAdapter`. All of it is zero or the identity at first, so a fresh domain scores as the backbone does.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from models.adapters import DomainOwned
from models.batch import Batch, Events, arrange
from models.contrast import ContrastConfig, CrossRepresentation
from models.cross_attention import (
    AttentionConfig,
    DomainAwareCrossAttention,
    DomainEncoder,
    Memory,
    StepWeights,
    Vacated,
)
from models.embeddings import EventContext, FieldEmbedding, ItemTable, RowTable
from models.evidence import EVIDENCE, as_score, history_evidence
from models.history import History, Reads, stored_items
from models.pyramid import Pyramid, PyramidConfig

Interest = Literal["dacdr", "lcn", "both", "domain_over_pyramid"]
JOIN_FROM = 8  # rows on one view of a history from which its context is written out as vectors


@dataclass(frozen=True)
class RankerConfig:
    """What the shared model is built of. Sizes count the row of the unknown.

    source_items: rows of the source item table
    item_fields, user_fields, context_fields, domain_fields: vocabulary size of each field
    actions: codes of event actions
    users: rows of the user table; 0 for no user identity
    interest: ``dacdr``, ``lcn`` (the pyramid alone), ``both`` (the two views beside each other) or
        ``domain_over_pyramid`` (DACDR reading only what the pyramid selected, beside the pyramid's view)
    ia_memory, domain_attention, item_attention, vacated: see AttentionConfig
    product: also give the head û ⊙ e_v, which a multilayer perceptron is slow to find
    user_dropout: share of training rows whose user is hidden, so that the unknown user means something
    contrast: LCN's cross representation production beside the task's loss; None for none. Training only
    mean_label: mean label of the training rows; what an item of which nothing is known is expected to get
    """

    source_items: int
    item_fields: tuple[int, ...] = ()
    user_fields: tuple[int, ...] = ()
    context_fields: tuple[int, ...] = ()
    domain_fields: tuple[int, ...] = ()
    actions: int = 1
    users: int = 0
    width: int = 32
    task: Literal["ctr", "rating"] = "ctr"
    interest: Interest = "dacdr"
    ia_memory: Memory = "concat"
    domain_attention: bool = True
    item_attention: bool = True
    vacated: Vacated = "drop"
    pyramid: PyramidConfig = field(default_factory=PyramidConfig)
    encoder_hidden: int = 128
    head: tuple[int, ...] = (256, 128)
    product: bool = True
    user_dropout: float = 0.2
    mean_label: float = 0.5
    contrast: ContrastConfig | None = None

    def __post_init__(self) -> None:
        if self.source_items < 1:
            raise ValueError("source_items counts the row of the unknown, so it is at least 1")
        if self.task not in ("ctr", "rating"):
            raise ValueError(f"task is ctr or rating, not {self.task!r}")
        if self.interest not in ("dacdr", "lcn", "both", "domain_over_pyramid"):
            raise ValueError(f"interest is dacdr, lcn, both or domain_over_pyramid, not {self.interest!r}")
        if not 0 <= self.user_dropout < 1:
            raise ValueError(f"user_dropout is a share below 1, not {self.user_dropout}")

    @property
    def domain_tokens(self) -> int:
        """M: one token a domain feature, and a free one."""
        return len(self.domain_fields) + 1

    @property
    def attends(self) -> bool:
        """Whether DACDR's cross-attention is built."""
        return self.interest != "lcn"

    @property
    def climbs(self) -> bool:
        """Whether LCN's pyramid is built."""
        return self.interest != "dacdr"

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The config that `as_dict` wrote, perhaps by way of JSON.

        Raises:
            ValueError: an unknown name or a value out of range.
        """
        parts: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
        }
        unknown = set(parts) - {f.name for f in fields(cls)}
        if unknown:
            raise ValueError(f"unknown settings of a ranker: {sorted(unknown)}")
        if isinstance(parts.get("pyramid"), dict):
            pyramid = parts["pyramid"]
            parts["pyramid"] = PyramidConfig(**{**pyramid, "levels": tuple(pyramid["levels"])})
        if isinstance(parts.get("contrast"), dict):
            parts["contrast"] = ContrastConfig(**parts["contrast"])
        return cls(**parts)


@dataclass(frozen=True)
class DomainConfig:
    """What one domain brings.

    items: rows of the domain's own item table; 0 where its items live in the source table, which makes the slot part of
        the backbone
    feature_codes: code of each domain field
    """

    items: int
    feature_codes: tuple[int, ...] = ()

    @property
    def in_backbone(self) -> bool:
        return self.items == 0


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
        evidence:                      (EVIDENCE,), added to the shared weights of the user's evidence
        feature_codes:                 (domain fields,) long
        items:                         the domain's own catalogue, or None
    """

    feature_codes: Tensor

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
        steps = (ranker.attends and ranker.domain_attention, ranker.attends and ranker.item_attention)
        self.domain_weights = nn.Parameter(torch.zeros(3, width, width)) if steps[0] else None
        self.item_weights = nn.Parameter(torch.zeros(3, width, width)) if steps[1] else None
        self.evidence = nn.Parameter(torch.zeros(EVIDENCE))
        self.calibrator = Calibrator()
        self.items: ItemTable | None = None
        if not config.in_backbone:
            self.items = ItemTable(
                config.items, width, item_codes, len(ranker.item_fields), scale=0.0, mean=ranker.mean_label
            )

    def start_like(self, other: DomainAdapter) -> None:
        """Take over another domain's tokens and attention; items and calibration stay the domain's own."""
        with torch.no_grad():
            self.tokens.copy_(other.tokens)
            self.evidence.copy_(other.evidence)
            for mine, theirs in ((self.domain_weights, other.domain_weights), (self.item_weights, other.item_weights)):
                if mine is not None and theirs is not None:
                    mine.copy_(theirs)


class TargetAttention(nn.Module):
    """DIN's view of a short history: a small network weighs each event against the candidate; no softmax.

    Its first layer reads [query ; event ; query * event ; query - event]. The last part only adds to the first two, so
    the layer is written as three products and the four are never laid side by side for each event.

    Shapes:
        events (C, G, S, D), mask (C, G, S), candidate (C, G, D); returns (C, G, D)
    """

    def __init__(self, width: int, hidden: int = 32) -> None:
        super().__init__()
        self.first = nn.Linear(4 * width, hidden)
        self.last = nn.Linear(hidden, 1)

    def forward(self, events: Tensor, mask: Tensor, candidate: Tensor) -> Tensor:
        query, event, product, difference = self.first.weight.t().chunk(4)
        of_query = candidate @ (query + difference) + self.first.bias
        hidden = of_query[:, :, None] + events @ (event - difference) + (candidate[:, :, None] * events) @ product
        weight = self.last(hidden.relu()) * mask[..., None]
        return (weight * events).sum(2)


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

    ``source_values`` (source_items,) holds the mean value of each source item's events, as histories hold values.

    Args:
        config: see RankerConfig
        source_item_codes: (source_items, F) long, feature codes of the source items; row 0 is the unknown item
    """

    source_values: Tensor

    def __init__(self, config: RankerConfig, source_item_codes: Tensor | None = None) -> None:
        super().__init__()
        width = config.width
        self.config = config
        self.source_items = ItemTable(
            config.source_items, width, source_item_codes, len(config.item_fields), mean=config.mean_label
        )
        self.register_buffer("source_values", torch.full((config.source_items,), config.mean_label))
        self.item_fields = FieldEmbedding(config.item_fields, width)
        self.user_fields = FieldEmbedding(config.user_fields, width)
        self.context_fields = FieldEmbedding(config.context_fields, width)
        self.domain_fields = FieldEmbedding(config.domain_fields, width)
        self.free_token = nn.Parameter(torch.zeros(1, width))
        self.users = RowTable(config.users, width) if config.users else None
        self.event_context = EventContext(config.actions, width)
        self.attention: DomainAwareCrossAttention | None = None
        self.encoder: DomainEncoder | None = None
        if config.attends:
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
        self.pyramid = Pyramid(config.pyramid, width) if config.climbs else None
        self.short_target = TargetAttention(width) if config.climbs else None
        self.short_source = TargetAttention(width) if config.climbs else None
        self.head = _head(self._head_inputs() * width + EVIDENCE, config.head)
        self.evidence = nn.Parameter(torch.zeros(EVIDENCE))
        self.domains = nn.ModuleList()
        self.tuned_slot: int | None = None

    def _head_inputs(self) -> int:
        config = self.config
        vectors = 1 + len(config.user_fields) + (config.users > 0) + len(config.context_fields)
        if config.attends:
            vectors += 2 if config.product else 1  # û, and û ⊙ e_v
        else:
            vectors += config.domain_tokens  # the encoder is not there to read E_d
        if config.climbs:
            vectors += len(config.pyramid.levels) + 2
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

    def row_tables(self) -> list[RowTable]:
        """Tables of which a step touches few rows, for the optimiser's choice of update."""
        return [module for module in self.modules() if isinstance(module, RowTable)]

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
        """Scores of the rows, (B,): logits for clicks, ratings otherwise; ``batch.prior`` is added.

        ``stack`` is that of all slots, made once by a scorer whose weights no longer change.
        """
        if not len(batch):
            return batch.prior.clone()
        cells, layout = arrange(batch)
        shape = (layout.chunks, layout.per_chunk)
        slot_of_chunk = cells.domain[:: layout.per_chunk]
        present = torch.unique(slot_of_chunk).tolist()
        if stack is None:
            stack = self.stack(present)
            known = torch.full((max(present, default=0) + 1,), 0, device=slot_of_chunk.device)
            known[present] = torch.arange(len(present), device=slot_of_chunk.device)
            domain = known[slot_of_chunk] if len(present) > 1 else None
        else:
            domain = slot_of_chunk
        items = self._read_items(cells, slot_of_chunk, present)
        candidate = items.candidate.view(*shape, -1)
        tokens = stack.tokens.expand(layout.chunks, -1, -1) if domain is None else stack.tokens[domain]

        history = self._history(cells, shape, items)
        profile = self._profile(cells, shape)
        inputs = [candidate, profile.flatten(2), self.context_fields.tokens(cells.context).view(*shape, -1)]
        if self.pyramid is not None:
            view, selection = self.pyramid.read(history, candidate)
            inputs += [view, *self._short_views(cells, candidate, items)]
            if self.config.interest == "domain_over_pyramid":
                history = history.only(selection.mask(history.items.shape[1]))
        if self.attention is not None and self.encoder is not None:
            domain_weights = stack.domain_weights and stack.domain_weights.of(domain)
            item_weights = stack.item_weights and stack.item_weights.of(domain)
            views = self.attention(history, tokens, candidate[:, :, None], profile, domain_weights, item_weights)
            transferred = self.encoder(*views, tokens, layout.per_chunk)
            inputs += [transferred, transferred * candidate] if self.config.product else [transferred]
        else:
            inputs.append(tokens.flatten(1)[:, None].expand(-1, layout.per_chunk, -1))
        evidence = history_evidence(cells.lifelong, self.source_values)
        inputs.append(evidence.view(*shape, -1))
        score = self.head(torch.cat(inputs, -1)).view(-1) + self._expected(cells, evidence, present)
        return layout.back(score) + batch.prior

    def _expected(self, cells: Batch, evidence: Tensor, present: list[int]) -> Tensor:
        """What the plain facts say, (C * G,): the item's mean, and the user's evidence by the domain's weights."""
        expected = evidence.new_zeros(len(cells))
        for number in present:
            adapter = self.owned(number)
            mean = as_score((adapter.items or self.source_items).mean_of(cells.item), self.config.task)
            own = mean + evidence @ (self.evidence + adapter.evidence)
            expected = own if len(present) == 1 else torch.where(cells.domain == number, own, expected)
        return expected

    def probability(self, batch: Batch, stack: DomainStack | None = None) -> Tensor:
        """Calibrated answers, (B,): click probabilities, or ratings."""
        return self.calibrated(self(batch, stack), batch.domain)

    def calibrated(self, score: Tensor, domain: Tensor) -> Tensor:
        """Scores of `forward` through the calibrator of each row's domain, and the sigmoid for clicks."""
        scale = torch.stack([self.owned(slot).calibrator.scale for slot in range(len(self.domains))])
        shift = torch.stack([self.owned(slot).calibrator.shift for slot in range(len(self.domains))])
        calibrated = score * scale[domain] + shift[domain]
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
        if shape[1] > 1 and all(bool((part == part[:, :1]).all()) for part in (now, start, stop)):
            now, start, stop = now[:, :1], start[:, :1], stop[:, :1]
        position = torch.arange(events.item.shape[1], device=events.item.device)
        mask = (position >= start[..., None]) & (position < stop[..., None])
        codes = self.event_context.codes(events.action, events.value, events.time, now)
        joined = None
        if shape[1] >= JOIN_FROM and now.shape[1] == 1:
            joined = self.event_context.vectors(codes)[:, 0]
        return History(items.lifelong, mask, codes, self.event_context.weight, joined, items.reads)

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

        def view(attention: nn.Module | None, events: Events | None, vectors: Tensor | None) -> Tensor:
            if attention is None or events is None or vectors is None:
                return torch.zeros_like(candidate)
            now = cells.time.view(candidate.shape[:2])
            codes = self.event_context.codes(events.action, events.value, events.time, now)
            tokens = vectors[:, None] + self.event_context.vectors(codes)
            return attention(tokens, events.mask().view(*candidate.shape[:2], -1), candidate)

        return (
            view(self.short_target, cells.short_target, items.short_target),
            view(self.short_source, cells.short_source, items.short_source),
        )


def _head(inputs: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """FC of equation 7: ReLU layers and one output."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(inputs, size), nn.ReLU()]
        inputs = size
    last = nn.Linear(inputs, 1)
    # The item's mean is where scores start from, so the network itself starts from nothing.
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)

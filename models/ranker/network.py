"""The composed network: embeddings, a wide part, the user's architecture (DACDR, LCN or both), head.

    events ──► History ──► two-step cross-attention ──► domain encoder ──► û ─┐
                  └──────► pyramid (CSA, MSA, FSA) ───────────────────────────┤
    short target, short source ──► target attention ──────────────────────────┼──► head ──► + wide part ──► score
    user profile, context, item ──────────────────────────────────────────────┘

What a domain owns (its tokens, its part of W_Q, W_K, W_V of both attention steps, its item rows, its wide weights, its
calibrator) stands in one `DomainAdapter`. All of it is zero or the identity at first, so a fresh domain scores as the
backbone does. How rows are laid out to be read fast stands behind `models.ranker.layout`.

Where each equation of the papers stands:

    DACDR eq. (1), (2)   models/layers/cross_attention.py   softmax attention; W_Q, W_K, W_V of two sequences
    DACDR eq. (3)        models/layers/cross_attention.py   T_d, the history as the domain reads it
    DACDR eq. (4)        models/layers/cross_attention.py   T_i, the same as the item reads it
    DACDR eq. (5)        benchmarks/baselines/bridges.py    the mapping between domains that DACDR replaces (PTUPCDR)
    DACDR eq. (6)        models/layers/cross_attention.py   û, the domain encoder
    DACDR eq. (7)        models/layers/mlp.py               the head
    DACDR eq. (8)        models/training/step.py            the task's loss
    LCN eq. (3) to (6)   models/layers/contrast.py          cross representation production and its weights
    LCN eq. (7), (8)     models/layers/pyramid.py           complete-scope attention
    LCN eq. (9), (10)    models/layers/pyramid.py           median-scope attention
    LCN eq. (11) to (13) models/layers/pyramid.py           focused-scope attention
    LCN eq. (14)         models/training/step.py            the objective with the contrastive loss
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from models.batch import Batch, Events
from models.layers.contrast import CrossRepresentation
from models.layers.cross_attention import Answers
from models.layers.embeddings import RowTable
from models.layers.mlp import Head
from models.layers.pyramid import Pyramid
from models.layers.shared_history import Reading, read
from models.ranker.config import DomainConfig, RankerConfig
from models.ranker.dacdr import DACDR
from models.ranker.domain_adapter import DomainAdapter, DomainStack
from models.ranker.embeddings import Embeddings
from models.ranker.frozen_cache import FrozenCache
from models.ranker.layout import Owners, Rows, plain_rows, shared_rows
from models.ranker.short_views import ShortViews
from models.ranker.wide_part import wide_part

__all__ = ["DomainAdapter", "DomainConfig", "DomainStack", "Ranker", "RankerConfig"]


class Ranker(nn.Module):
    """Scores (user, item, domain) rows.

    Args:
        config: see RankerConfig
        source_item_codes: (source_items, F) long, feature codes of the source items; row 0 is the unknown item
    """

    def __init__(self, config: RankerConfig, source_item_codes: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        self.wide = wide_part(config)
        self.embeddings = Embeddings(config, source_item_codes)
        self.dacdr = DACDR(config) if config.uses_cross_attention else None
        self.pyramid = Pyramid(config.pyramid, config.width) if config.uses_pyramid and config.pyramid.levels else None
        self.short_views = ShortViews(config.width) if config.uses_pyramid else None
        self.head = Head(
            config.head_vectors * config.width,
            config.head,
            candidate=config.width,
            frozen=config.frozen_vectors * config.width,
            wide=config.wide_features,
        )
        if self.wide.solved and config.task == "rating":
            # What wide features say is solved for, not searched for: the network starts from nothing beside it. Clicks
            # have rows enough to move a network that starts at random, and it learns sooner.
            nn.init.zeros_(self.head.last.weight)
        self.domains = nn.ModuleList()
        self._cache: FrozenCache | None = None

    # Domains

    def add_domain(self, config: DomainConfig, item_codes: Tensor | None = None, *, like: int | None = None) -> int:
        """Give a domain a slot; returns it. A fresh domain scores as the backbone does, or as slot ``like`` does.

        Raises:
            ValueError: the codes do not fit the ranker's fields, or a backbone slot would come after a target's, which
                would change its number when the backbone is loaded alone.
        """
        if config.in_backbone and any(not self.owned(slot).config.in_backbone for slot in range(len(self.domains))):
            raise ValueError("add the domains that use the source item table first: their slots belong to the backbone")
        adapter = DomainAdapter(self.config, config, item_codes).to(self.embeddings.free_token)
        if like is not None:
            adapter.start_like(self.owned(like))
        if adapter.values is not None:
            adapter.values.fill_(self.wide.source_values[0])
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

    def stack(self, slots: Iterable[int]) -> DomainStack:
        """The owned tensors of these slots beside each other."""
        adapters = [self.owned(slot) for slot in slots]
        tokens = self.embeddings.domain_tokens(adapters)
        return DomainStack(tokens, *((None, None) if self.dacdr is None else self.dacdr.folded(adapters)))

    def with_own_domains(self) -> Ranker:
        """A ranker of the very same modules with a list of domains of its own: what is added to it is added nowhere
        else."""
        twin = copy.copy(self)
        vars(twin)["_modules"] = dict(self._modules)
        twin.domains = nn.ModuleList(list(self.domains))
        return twin

    def _owners(self, domain: Tensor) -> Owners:
        return {slot: self.owned(slot) for slot in torch.unique(domain).tolist()}

    # What trains, and what is frozen

    @property
    def frozen(self) -> bool:
        """Whether nothing trains but what domains own."""
        shared = (part for part in self.children() if part is not self.domains)
        return not any(weight.requires_grad for part in shared for weight in part.parameters())

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 - torch's own signature
        """As nn.Module.train, but what is frozen stays in evaluation mode: its dropout must act as in serving."""
        if not mode or not self.frozen:
            return super().train(mode)
        super().eval()
        for adapter in self.domains:
            adapter.train(any(weight.requires_grad for weight in adapter.parameters()))
        return self

    @property
    def cache(self) -> FrozenCache | None:
        """Where rows with a key read their frozen activations; None as soon as a weight that they come of trains."""
        return self._cache if self._cache is not None and self.frozen else None

    @contextmanager
    def using(self, cache: FrozenCache | None) -> Iterator[None]:
        """While it lasts, rows with a key read their frozen activations from this cache; see `precompute`."""
        before, self._cache = self._cache, cache
        try:
            yield
        finally:
            self._cache = before

    def rows_read(self, batch: Batch) -> list[tuple[RowTable, Tensor]]:
        """Tables and the indices into them that scoring or training on a batch looks up; a table may come often."""
        source = self.embeddings.source_items.rows
        tables = [(source, batch.lifelong.item)]
        if batch.short_source is not None:
            tables.append((source, batch.short_source.item))
        if self.embeddings.users is not None:
            tables.append((self.embeddings.users, batch.user))
        for slot, own in self._owners(batch.domain).items():
            mine = batch.domain == slot
            rows = self.embeddings.items_of(own).rows
            tables.append((rows, batch.item[mine]))
            if batch.short_target is not None:
                tables.append((rows, batch.short_target.item[batch.short_target.row[mine]]))
        return tables

    # Scoring

    def forward(self, batch: Batch, stack: DomainStack | None = None) -> Tensor:
        """Scores of the rows, (B,): logits for clicks, ratings otherwise; ``batch.offset`` is added.

        ``stack`` is that of all slots, made once by a scorer whose weights no longer change.
        """
        return self.hidden(batch, stack)[1]

    def hidden(self, batch: Batch, stack: DomainStack | None = None) -> tuple[Tensor, Tensor]:
        """What the last layer reads, (B, H), and the scores of `forward`, linear in it up to the wide part."""
        if not len(batch):
            return batch.offset.new_zeros(0, self.head.last.in_features), batch.offset.clone()
        owners = self._owners(batch.domain)
        rows = shared_rows(self.embeddings, batch, owners, short=self.short_views is not None)
        return self._score(rows, owners, batch.offset, stack)

    def plain(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """As `hidden` by the definition, each row alone and nothing shared or cached: what speed must not change."""
        owners = self._owners(batch.domain)
        with self.using(None):
            rows = plain_rows(self.embeddings, batch, owners, short=self.short_views is not None)
            return self._score(rows, owners, batch.offset, None)

    def _score(self, rows: Rows, owners: Owners, offset: Tensor, stack: DomainStack | None) -> tuple[Tensor, Tensor]:
        """The network over rows as either form of `layout` gives them."""
        candidate, cells = rows.candidate, rows.candidate.shape[1]  # e_v [C, G, D]
        domain = self._domain(rows, owners, stack)  # E_d [C, M, D] and the W of both steps
        cache = None if rows.cells.key is None else self.cache
        inputs = [candidate]
        if cache is None:
            inputs += rows.frozen_inputs(self.embeddings)
        views, answers = self._read_history(rows, domain)
        if self.short_views is not None:
            views = views + self.short_views(rows.short_target, rows.short_source, candidate)
        inputs += views
        if self.config.product:
            inputs += [view * candidate for view in views]
            if self.config.uses_pyramid and self.embeddings.users is not None:
                inputs.append(rows.profile[:, :, -1] * candidate)
        if self.dacdr is not None and answers is not None:
            transferred = self.dacdr(answers, domain.tokens, cells)  # û [C, G, D], DACDR eq. (6)
            inputs += [transferred, transferred * candidate] if self.config.product else [transferred]
        else:
            inputs.append(domain.tokens.flatten(1)[:, None].expand(-1, cells, -1))
        first, expected = self._first_layer(rows.cells, owners, torch.cat(inputs, -1).flatten(0, 1), cache)
        state = self.head.state(first)
        score = self.head.score(state) + expected  # ŷ before the sigmoid, DACDR eq. (7)
        return rows.arrangement.back(state), rows.arrangement.back(score) + offset

    def _domain(self, rows: Rows, owners: Owners, stack: DomainStack | None) -> DomainStack:
        """The stack of the chunks' domains; weights of 1 domain where all chunks share it."""
        chunks = len(rows.domain)
        if stack is not None:
            return stack.of(rows.domain, chunks)
        slots = torch.tensor(list(owners), device=rows.domain.device)
        place = torch.searchsorted(slots, rows.domain.contiguous()) if len(owners) > 1 else None
        return self.stack(owners).of(place, chunks)

    def _read_history(self, rows: Rows, domain: DomainStack) -> tuple[list[Tensor], Answers | None]:
        """The pyramid's views, LCN eqs. (7) to (13), and DACDR's T_d and T_i, eqs. (3) and (4).

        What both ask of the history's items is asked together, unless one chooses what the other sees.
        """
        history, readings = rows.history, list[Reading[Any]]()
        views: list[Tensor] = []
        if self.pyramid is not None:
            readings.append(self.pyramid.reading(history, rows.candidate))
            if self.config.architecture == "domain_over_pyramid":
                ((views, selection),) = read(history, *readings)
                history, readings = history.only(selection.mask(history.items.shape[1])), []
        if self.dacdr is not None:
            readings.append(self.dacdr.reading(history, rows.candidate, rows.profile, domain))
        answers = read(history, *readings)
        if self.pyramid is not None and not views:
            views = answers[0][0]
        return views, None if self.dacdr is None else answers[-1]

    def _first_layer(
        self, cells: Batch, owners: Owners, vectors: Tensor, cache: FrozenCache | None
    ) -> tuple[Tensor, Tensor]:
        """The head's first layer, (n, H), and the wide part's score, (n,); frozen inputs come of the cache or are among
        the vectors (n, I)."""
        if cache is not None and cells.key is not None:
            features, mean = cache.wide.index_select(0, cells.key), cache.mean.index_select(0, cells.key)
            first = cache.first_layer(vectors, cells.key)
        else:
            features, mean = self.wide(cells, owners, self.embeddings.source_items)
            first = self.head.first_layer(vectors, features)
        return first, self.wide.score(features, mean, cells.domain, owners)

    def wide_features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The wide features of rows, (B, F), and each item's mean in the score's unit, (B,)."""
        return self.wide(batch, self._owners(batch.domain), self.embeddings.source_items)

    def wide_score(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The wide features of rows, (B, F), and the score that they give, (B,), without ``batch.offset``."""
        features, mean = self.wide_features(batch)
        return features, self.wide.score(features, mean, batch.domain, self._owners(batch.domain))

    def frozen_share(self, batch: Batch, features: Tensor) -> Tensor:
        """What profile, context and wide features add to the head's first layer, with its bias: (B, H)."""
        profile, context = self.embeddings.profile(batch).flatten(1), self.embeddings.context(batch)
        return self.head.frozen_share(torch.cat([profile, context, features], 1))

    def probability(self, batch: Batch, stack: DomainStack | None = None) -> Tensor:
        """Calibrated answers, (B,): click probabilities, or ratings."""
        return self.calibrated(self(batch, stack), batch.domain)

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

    @torch.no_grad()
    def consistency(self, batch: Batch, top: int = 50) -> tuple[Tensor, Tensor]:
        """Share of FSA's own ``top`` events that the pyramid finds, (B,), and for whom it says something; see Pyramid.

        Raises:
            ValueError: there is no pyramid, or it has no FSA.
        """
        if self.pyramid is None:
            raise ValueError("consistency is a pyramid's, which this ranker lacks")
        rows = shared_rows(self.embeddings, batch, self._owners(batch.domain), short=False)
        share, counts = self.pyramid.consistency(rows.history, rows.candidate, top)
        return rows.arrangement.back(share.flatten()), rows.arrangement.back(counts.flatten())

    def auxiliary_loss(self, batch: Batch) -> Tensor | None:
        """LCN's contrastive loss over the short histories (LCN eqs. 3 to 6), where the config asks for it.

        None where it does not, or where the batch holds no pair. Inference never comes here.
        """
        if self.config.contrast is None:
            return None

        def shown(events: Events | None) -> tuple[Tensor, Tensor] | None:
            return None if events is None else (events.item[events.row], events.mask())

        def embed_target(item: Tensor, row: Tensor) -> Tensor:
            slot = batch.domain[row]
            vectors = self.embeddings.free_token.new_zeros(len(item), self.config.width)
            for number, own in self._owners(slot).items():
                mine = slot == number
                vectors = vectors.masked_scatter(mine[:, None], self.embeddings.stored(item[mine], own))
            return vectors

        return CrossRepresentation(self.config.contrast).loss(
            target=shown(batch.short_target),
            source=shown(batch.short_source),
            user=batch.user,
            embed_target=embed_target,
            embed_source=lambda item, _: self.embeddings.stored(item),
            domain=batch.domain,
        )

"""The seam between the network and what makes it fast: how the rows of a batch are laid out to be read.

Both forms give the same `Rows`, and the network makes the same scores of either:

- `plain_rows`, the definition: every row stands alone, its history is gathered for it and written out as vectors;
- `shared_rows`, for speed: rows of one user stand in one chunk and share its history, all items are looked up at once,
  contexts are read through codes, and rows that see the same form groups.

    C  chunks    G  cells a chunk    L  events    D  width; B rows alone are B chunks of one cell
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from models.batch import Arrangement, Batch, Events, arrange
from models.layers.embeddings import context_vectors
from models.layers.shared_history import History, Reads, stored_items
from models.ranker.domain_adapter import DomainAdapter
from models.ranker.embeddings import Embeddings
from models.ranker.short_views import ShortEvents

JOIN_FROM = 8  # rows on one view of a history from which its context is written out as vectors


@dataclass(frozen=True)
class Rows:
    """A batch as the network reads it.

    Shapes:
        cells:     the batch of C * G cells
        domain:    (C,) slot of each chunk's domain
        candidate: (C, G, D), e_v
        profile:   (C, G, P, D), tokens of the user
    """

    cells: Batch
    arrangement: Arrangement
    domain: Tensor
    candidate: Tensor
    profile: Tensor
    history: History
    short_target: ShortEvents | None
    short_source: ShortEvents | None

    def frozen_inputs(self, embeddings: Embeddings) -> list[Tensor]:
        """Profile and context, (C, G, ...) each, in the head's order."""
        return [self.profile.flatten(2), embeddings.context(self.cells).view(*self.profile.shape[:2], -1)]


Owners = Mapping[int, DomainAdapter]


def plain_rows(embeddings: Embeddings, batch: Batch, owners: Owners, *, short: bool) -> Rows:
    """Every row by itself."""
    shape = (len(batch), 1)
    alone = torch.arange(len(batch), device=batch.item.device)

    def own_items(rows: Batch, item: Tensor, features: Tensor | None) -> Tensor:
        """Vectors of items of each row's own domain, (B, ...) -> (B, ..., D)."""
        vectors = embeddings.free_token.new_zeros(*item.shape, embeddings.width)
        for slot, own in owners.items():
            mine = rows.domain == slot
            if features is None:
                vectors[mine] = embeddings.stored(item[mine], own)
            else:
                vectors[mine] = embeddings.candidates(own, item[mine], features[mine])
        return vectors

    def gathered(events: Events) -> Events:
        parts = {name: getattr(events, name)[events.row] for name in ("item", "action", "value", "time")}
        return replace(events, **parts, row=alone)

    def context(events: Events) -> tuple[tuple[Tensor, ...], Tensor]:
        table = embeddings.event_context
        codes = table.codes(events.action, events.value, events.time, batch.time[:, None])
        return codes, table.vectors(codes)[:, 0]

    def short_events(events: Events | None, *, own: bool) -> ShortEvents | None:
        if events is None or not short:
            return None
        events = gathered(events)
        items = own_items(batch, events.item, None) if own else embeddings.stored(events.item)
        table = embeddings.event_context.weight
        return ShortEvents(items + context(events)[1], events.mask()[:, None], None, table)

    lifelong = gathered(batch.lifelong)
    codes, of_context = context(lifelong)
    return Rows(
        cells=replace(batch, lifelong=lifelong),
        arrangement=Arrangement(len(batch), 1, None, None),
        domain=batch.domain,
        candidate=own_items(batch, batch.item, batch.item_features)[:, None],
        profile=embeddings.profile(batch).view(*shape, -1, embeddings.width),
        history=History(
            embeddings.stored(lifelong.item),
            lifelong.mask()[:, None],
            codes,
            embeddings.event_context.weight,
            of_context,
        ),
        short_target=short_events(batch.short_target, own=True),
        short_source=short_events(batch.short_source, own=False),
    )


def shared_rows(embeddings: Embeddings, batch: Batch, owners: Owners, *, short: bool) -> Rows:
    """Rows of one user and domain in chunks that share what they read."""
    cells, arrangement = arrange(batch)
    shape = (arrangement.chunks, arrangement.per_chunk)
    domain = cells.domain[:: arrangement.per_chunk]
    items = _all_items(embeddings, cells, domain, owners, short=short)
    history = _history(embeddings, cells, shape, items)
    return Rows(
        cells=cells,
        arrangement=arrangement,
        domain=domain,
        candidate=items.candidate.view(*shape, -1),
        profile=embeddings.profile(cells).view(*shape, -1, embeddings.width),
        history=history,
        short_target=_short_events(embeddings, cells, shape, cells.short_target, items.short_target),
        short_source=_short_events(embeddings, cells, shape, cells.short_source, items.short_source),
    )


@dataclass(frozen=True)
class _Items:
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


def _all_items(embeddings: Embeddings, cells: Batch, domain: Tensor, owners: Owners, *, short: bool) -> _Items:
    """Vectors of all items that the batch speaks of, from one look-up of each table."""
    short_source, short_target = (cells.short_source, cells.short_target) if short else (None, None)
    # Items of the row's own domain: candidates, then short target events.
    index = [cells.item]
    slots = [domain.repeat_interleave(len(cells) // len(domain))]
    if short_target is not None:
        index.append(short_target.item.reshape(-1))
        slots.append(domain.repeat_interleave(short_target.item.shape[1]))
    own, slot = torch.cat(index), torch.cat(slots)
    from_source = [number for number, adapter in owners.items() if adapter.items is None]
    others = [own.new_zeros(0) if short_source is None else short_source.item.reshape(-1)]
    if from_source:
        inside = torch.isin(slot, torch.tensor(from_source, device=slot.device))
        others.append(torch.where(inside, own, 0))
    source_items, item_fields = embeddings.source_items, embeddings.item_fields
    lifelong, rest, reads = stored_items(source_items, item_fields, cells.lifelong.item, torch.cat(others))
    vectors = rest[len(others[0]) :] if from_source else rest.new_zeros(len(own), embeddings.width)
    event_codes = cells.item_features.new_zeros(len(own) - len(cells), len(item_fields))
    for number, adapter in owners.items():
        mine = slot == number
        if adapter.items is not None and len(owners) == 1:
            vectors = adapter.items.rows(own)
        elif adapter.items is not None:
            vectors = vectors.masked_scatter(mine[:, None], adapter.items.rows(own[mine]))
        of_events = mine[len(cells) :]
        event_codes[of_events] = embeddings.items_of(adapter).features(own[len(cells) :][of_events])
    # Candidates bring their codes along; those of stored events are the catalogue's.
    vectors = vectors + item_fields.sum(torch.cat([cells.item_features, event_codes]))

    def shaped(rows: Tensor, events: Events | None) -> Tensor | None:
        return None if events is None else rows.view(*events.item.shape, -1)

    source_rows = rest[: len(others[0])]
    if short_source is not None:
        source_rows = source_rows + item_fields.sum(source_items.features(others[0]))
    return _Items(
        vectors[: len(cells)],
        lifelong,
        reads,
        shaped(source_rows, short_source),
        shaped(vectors[len(cells) :], short_target),
    )


def _history(embeddings: Embeddings, cells: Batch, shape: tuple[int, int], items: _Items) -> History:
    """The lifelong history as attention reads it; one view a chunk where all its rows see the same."""
    events = cells.lifelong
    now, start, stop = (part.view(shape) for part in (cells.time, events.start, events.stop))
    if shape[1] > 1 and all(bool((part == part[:, :1]).all()) for part in (start, stop)):
        start, stop = start[:, :1], stop[:, :1]
        now = now[:, :1] if bool((now == now[:, :1]).all()) else now
    position = torch.arange(events.item.shape[1], device=events.item.device)
    mask = (position >= start[..., None]) & (position < stop[..., None])
    event_context = embeddings.event_context
    codes, table = event_context.paired(event_context.codes(events.action, events.value, events.time, now))
    joined = None
    if shape[1] >= JOIN_FROM and now.shape[1] == 1:
        joined = context_vectors(torch.stack(torch.broadcast_tensors(*codes), -1), table)[:, 0]
    return History(items.lifelong, mask, codes, table, joined, items.reads)


def _short_events(
    embeddings: Embeddings, cells: Batch, shape: tuple[int, int], events: Events | None, vectors: Tensor | None
) -> ShortEvents | None:
    """A short history whose rows differ in nothing but recency."""
    if events is None or vectors is None:
        return None
    event_context = embeddings.event_context
    now = cells.time.view(shape)
    codes, table = event_context.paired(event_context.codes(events.action, events.value, events.time, now))
    *same, recency = codes
    shared = sum((F.embedding(code[:, 0], table) for code in same), vectors)
    return ShortEvents(shared, events.mask().view(recency.shape), recency, table)

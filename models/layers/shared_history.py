"""A stored history as attention reads it: written once, read by many queries, its gradient written once.

Every query on a history, whichever attention asks it, is a product with the same stored vectors (C, L, D). Each
product's gradient for them is as large as they are; done one by one they cost more than all else in a training step. So
reads only note what they would contribute, and the contributions are summed in one product when the backward pass
reaches the vectors themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional as F

from models.layers.embeddings import FieldEmbedding, ItemTable, context_vectors, known
from models.layers.row_groups import RowGroups
from models.layers.sparse import pooled_by_row

_FEW_ROWS = 8


class Reads:
    """Contributions to the gradient of stored vectors that still wait to be summed.

    A contribution is a product left^T right of (C, R, L) and (C, R, D), or rows (n, D) at flat places (n,).
    Kept apart by backward pass, so that one that stops early leaves nothing to the next.
    """

    def __init__(self) -> None:
        self._products: dict[int, list[tuple[Tensor, Tensor]]] = {}
        self._rows: dict[int, list[tuple[Tensor, Tensor]]] = {}

    def note_product(self, left: Tensor, right: Tensor) -> None:
        self._products.setdefault(_backward_pass(), []).append((left, right))

    def note_rows(self, place: Tensor, rows: Tensor) -> None:
        self._rows.setdefault(_backward_pass(), []).append((place, rows))

    def settle(self, total: Tensor) -> None:
        """Write the sum of what this backward pass noted into ``total`` (C, L, D)."""
        products = self._products.pop(_backward_pass(), [])
        if products:
            left = torch.cat([part for part, _ in products], 1).transpose(1, 2)
            right = torch.cat([part for _, part in products], 1)
            if right.dtype == total.dtype:
                torch.bmm(left, right, out=total)
            else:
                total.copy_(torch.bmm(left, right))
        else:
            total.zero_()
        for place, rows in self._rows.pop(_backward_pass(), []):
            total.view(-1, total.shape[-1]).index_add_(0, place, rows.to(total.dtype))


class _Stored(Function):
    """Item vectors of stored events, (C, L, D), and of other items, (n, D), from one look-up of their table."""

    @staticmethod
    def forward(  # noqa: PLR0917 - autograd hands arguments on by position
        ctx: Any,
        weight: Tensor,
        fields: Tensor,
        events: Tensor,
        field_rows: Tensor,
        others: Tensor,
        reads: Reads,
        sparse: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(events, field_rows, others)
        ctx.reads, ctx.sparse, ctx.kind, ctx.shapes = reads, sparse, weight.dtype, (weight.shape, fields.shape)
        stored = weight.index_select(0, events.reshape(-1))
        if field_rows.shape[1]:
            stored += F.embedding_bag(field_rows, fields, mode="sum")
        stored = stored.to(_working_type(weight)).view(*events.shape, weight.shape[1])
        return stored, weight.index_select(0, others)

    @staticmethod
    def backward(ctx: Any, stored: Tensor | None, rest: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        events, field_rows, others = ctx.saved_tensors
        (table_shape, fields_shape), count = ctx.shapes, events.numel()
        # The gradient of all looked-up rows in one piece: as sparse values it needs no further copy.
        values = torch.empty(count + len(others), table_shape[1], dtype=ctx.kind, device=events.device)
        of_events = values[:count].view(*events.shape, table_shape[1])
        ctx.reads.settle(of_events)
        if stored is not None:
            of_events += stored
        if rest is None:
            values[count:] = 0
        else:
            values[count:] = rest
        of_table = of_fields = None
        if ctx.needs_input_grad[0]:
            index = torch.cat([events.reshape(-1), others])
            if ctx.sparse[0]:
                of_table = torch.sparse_coo_tensor(index[None], values, table_shape, check_invariants=False)
            else:
                of_table = torch.ops.aten.embedding_dense_backward(
                    values, index, table_shape[0], -1, scale_grad_by_freq=False
                )
        if ctx.needs_input_grad[1] and field_rows.shape[1] and ctx.sparse[1]:
            touched, summed = pooled_by_row(field_rows, values[:count])
            of_fields = torch.sparse_coo_tensor(touched[None], summed, fields_shape, check_invariants=False)
        elif ctx.needs_input_grad[1] and field_rows.shape[1]:
            of_fields = values.new_zeros(fields_shape)
            for column in field_rows.unbind(1):
                of_fields.index_add_(0, column, values[:count])
        return of_table, of_fields, None, None, None, None, None


class _Scores(Function):
    """Queries (C, R, D), several sets of them, with stored vectors (C, L, D): (C, R, L) each, in one product."""

    @staticmethod
    def forward(ctx: Any, stored: Tensor, reads: Reads | None, *queries: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(stored, *queries)
        ctx.reads = reads
        return _apart(_products(_together(queries), stored), queries)

    @staticmethod
    def backward(ctx: Any, *scores: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        stored, *queries = ctx.saved_tensors
        given = [None if part is None else part.to(stored.dtype) for part in scores]
        pairs = [(part, query) for part, query in zip(given, queries, strict=True) if part is not None]
        of_stored = _of_stored(pairs, ctx.reads) if ctx.needs_input_grad[0] else None
        return of_stored, None, *_asked(ctx.needs_input_grad[2:], given, lambda joined: torch.bmm(joined, stored))


class _Pool(Function):
    """Weights (C, R, L), several sets of them, over stored vectors (C, L, D): (C, R, D) each, in one product."""

    @staticmethod
    def forward(ctx: Any, stored: Tensor, reads: Reads | None, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(stored, *weights)
        ctx.reads = reads
        return _apart(torch.bmm(_together(weights), stored), weights)

    @staticmethod
    def backward(ctx: Any, *pooled: Tensor | None) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        stored, *weights = ctx.saved_tensors
        given = [None if part is None else part.to(stored.dtype) for part in pooled]
        pairs = [(weight, part) for part, weight in zip(given, weights, strict=True) if part is not None]
        of_stored = _of_stored(pairs, ctx.reads) if ctx.needs_input_grad[0] else None
        return of_stored, None, *_asked(ctx.needs_input_grad[2:], given, lambda joined: _products(joined, stored))


def _products(rows: Tensor, stored: Tensor) -> Tensor:
    """(C, R, D) with (C, L, D): (C, R, L). A few rows are quicker as the columns of a product than as its rows."""
    if rows.shape[1] < _FEW_ROWS:
        return torch.bmm(stored, rows.transpose(1, 2)).transpose(1, 2)
    return torch.bmm(rows, stored.transpose(1, 2))


def _of_stored(pairs: list[tuple[Tensor, Tensor]], reads: Reads | None) -> Tensor | None:
    """The gradient of stored vectors, sum of left^T right; noted for later where there is a place for notes."""
    if reads is None and pairs:
        left, right = (_together(part) for part in zip(*pairs, strict=True))
        return torch.bmm(left.transpose(1, 2), right)
    for left, right in pairs:
        assert reads is not None
        reads.note_product(left, right)
    return None


def _together(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts), 1)


def _apart(joined: Tensor, like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return (joined,) if len(like) == 1 else joined.split([part.shape[1] for part in like], 1)


def _asked(
    needed: Sequence[bool], given: list[Tensor | None], product: Callable[[Tensor], Tensor]
) -> list[Tensor | None]:
    """One product of those gradients (C, R, ...) that were given and that something asks for; None for the others."""
    parts = [part for part, wanted in zip(given, needed, strict=True) if wanted and part is not None]
    found = iter(_apart(product(_together(parts)), parts) if parts else ())
    return [next(found) if wanted and part is not None else None for part, wanted in zip(given, needed, strict=True)]


class _Rows(Function):
    """Stored vectors at flat places (n,) of C * L: (n, D)."""

    @staticmethod
    def forward(ctx: Any, place: Tensor, stored: Tensor, reads: Reads) -> Tensor:
        ctx.save_for_backward(place)
        ctx.reads = reads
        return stored.reshape(-1, stored.shape[-1]).index_select(0, place)

    @staticmethod
    def backward(ctx: Any, rows: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        if ctx.needs_input_grad[1]:
            ctx.reads.note_rows(ctx.saved_tensors[0], rows)
        return None, None, None


def stored_items(
    items: ItemTable, fields: FieldEmbedding, events: Tensor, others: Tensor
) -> tuple[Tensor, Tensor, Reads]:
    """Item vectors of stored events with their features, and bare table rows of other items, in one look-up.

    Shapes:
        events:   (C, L) long; others: (n,) long
        returns:  (C, L, D), to be read through `History` with the `Reads` returned beside it, and (n, D)
    """
    event_index, other_index = known(events, len(items)), known(others, len(items))
    field_rows = fields.rows(items.features(event_index)).view(event_index.numel(), -1)
    reads = Reads()
    rows, event_rows, other_rows = items.rows.at_hand(event_index, other_index)
    sparse = (items.rows.sparse, fields.sparse)
    stored, rest = _Stored.apply(rows, fields.weight, event_rows, field_rows, other_rows, reads, sparse)
    return stored, rest, reads


@dataclass(frozen=True)
class History:
    """Events as attention reads them: item vectors stored once a chunk, context through codes.

    A query's product with an event is its product with the item's vector plus its products with three rows of the small
    context table; those are computed once a query and looked up. So nothing of size rows x L x D is made.
    When many candidates share one view of the history, ``joined`` holds the context as vectors instead.

    Shapes (C chunks, G cells a chunk, V = G or 1 views a chunk, L events, N rows of the context table, Q queries):
        items:   (C, L, D)
        mask:    (C, V, L) bool
        codes:   each (C, V, L) long; mask and each code have a V of their own
        table:   (N, D)
        joined:  (C, L, D) context vectors, or None
        reads:   of the stored items, as `stored_items` gives it
    """

    items: Tensor
    mask: Tensor
    codes: tuple[Tensor, ...]
    table: Tensor
    joined: Tensor | None = None
    reads: Reads | None = None

    def only(self, mask: Tensor) -> History:
        """The same history of which only these events, (C, G, L), are seen."""
        return replace(self, mask=mask)

    def row_groups(self) -> RowGroups | None:
        """Which cells see the same; None where nearly all differ, and where they are written out as one already."""
        own = [part for part in (self.mask, *self.codes) if part.shape[1] > 1]
        if not own or self.joined is not None:
            return None
        groups = RowGroups.of(*own)
        return groups if 2 * len(groups) <= groups.of_cell.numel() else None

    def seen_by(self, groups: RowGroups) -> History:
        """What each of N groups sees, mask and codes (N, 1, L). Its items are still those of the chunks."""
        return replace(self, mask=groups.seen(self.mask), codes=tuple(groups.seen(code) for code in self.codes))

    def item_scores(self, query: Tensor) -> Tensor:
        """(C, G, Q, D) queries against item vectors: (C, G, Q, L)."""
        return self.item_scores_of(query)[0]

    def item_pool(self, weight: Tensor) -> Tensor:
        """(C, G, Q, L) weights over item vectors: (C, G, Q, D)."""
        return self.item_pool_of(weight)[0]

    def item_scores_of(self, *queries: Tensor) -> tuple[Tensor, ...]:
        """`item_scores` of several queries in one product, which reads the history once."""
        return _scores(queries, self.items, self.reads)

    def item_pool_of(self, *weights: Tensor) -> tuple[Tensor, ...]:
        """`item_pool` of several weights in one product."""
        return _pool(weights, self.items, self.reads)

    def chosen(self, position: Tensor) -> History:
        """The events at these positions (C, G, K), a history of K events for each row: chunks are rows, cells 1."""
        chunks, cells, count = position.shape
        first = torch.arange(chunks, device=position.device)[:, None, None] * self.items.shape[1]
        items = self.items_at((position + first).reshape(-1)).view(chunks * cells, count, -1)
        mask = self.mask.expand(-1, cells, -1).gather(2, position).reshape(-1, 1, count)
        codes = [code.expand(-1, cells, -1).gather(2, position).reshape(-1, 1, count) for code in self.codes]
        return History(items, mask, tuple(codes), self.table)

    def items_at(self, place: Tensor) -> Tensor:
        """Item vectors at flat places (n,) of C * L: (n, D)."""
        if self.reads is not None:
            return _Rows.apply(place, self.items, self.reads)
        return self.items.reshape(-1, self.items.shape[-1]).index_select(0, place)

    def context_vectors(self) -> Tensor:
        """Context vectors of each event as each view sees it, (C, V, L, D)."""
        return context_vectors(torch.stack(torch.broadcast_tensors(*self.codes), -1), self.table)

    def onto_context(self, weight: Tensor) -> Tensor:
        """Vectors (..., D) that context vectors are multiplied with, as `context_scores_of` wants them, (..., K).

        Their products with the table's rows, once for all events; a weight matrix can so be folded once for all rows.
        """
        return weight if self.joined is not None else times(weight, self.table.t())

    def from_context(self, value: Tensor) -> Tensor:
        """What follows `context_mass` to apply ``value`` (D, F) to pooled context vectors: (K, F)."""
        return value if self.joined is not None else self.table @ value

    def context_scores(self, query: Tensor) -> Tensor:
        """(C, G, Q, D) queries against context vectors: (C, G or V, Q, L)."""
        return self.context_scores_of(self.onto_context(query))

    def context_scores_of(self, of_row: Tensor) -> Tensor:
        """As `context_scores` from queries (C, G, Q, K) that went through `onto_context`."""
        if self.joined is not None:
            return _scores([of_row], self.joined)[0]
        total: Tensor | None = None
        # The codes that most rows see for themselves come first: the others are added to their scores in place.
        for code in sorted(self.codes, key=lambda code: -code.shape[1]):
            cells = max(of_row.shape[1], code.shape[1])
            index = code[:, :, None].expand(-1, cells, of_row.shape[2], -1)
            part = of_row.expand(-1, cells, -1, -1).gather(3, index)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def context_pool(self, weight: Tensor) -> Tensor:
        """(C, G, Q, L) weights over context vectors: (C, G, Q, D)."""
        mass = self.context_mass(weight)
        return mass if self.joined is not None else times(mass, self.table)

    def context_mass(self, weight: Tensor) -> Tensor:
        """How much weight falls on each row of the table, (C, G, Q, K); see `from_context`."""
        if self.joined is not None:
            return _pool([weight], self.joined)[0]
        cells = max(weight.shape[1], *(code.shape[1] for code in self.codes))
        weight = weight.expand(-1, cells, -1, -1)
        mass = weight.new_zeros(*weight.shape[:3], self.table.shape[0])
        for code in self.codes:
            mass = mass.scatter_add(3, code[:, :, None].expand_as(weight), weight)
        return mass

    def scores(self, query: Tensor, items: Tensor | None = None) -> Tensor:
        """Products with whole event tokens, item plus context: (C, G or V, Q, L); ``items`` if that part is made."""
        items, context = self.item_scores(query) if items is None else items, self.context_scores(query)
        return self.together(items, context)

    def together(self, items: Tensor, context: Tensor) -> Tensor:
        """Scores of items plus those of their context; in place where the latter were looked up for this alone."""
        return items + context if self.joined is not None else context.add_(items)

    def pool(self, weight: Tensor) -> Tensor:
        """Weighted sums of whole event tokens: (C, G, Q, D)."""
        return self.item_pool(weight) + self.context_pool(weight)


Answer_co = TypeVar("Answer_co", covariant=True)
Reading = Generator[Sequence[Tensor], Sequence[Tensor], Answer_co]
"""One attention's way through a history: it yields its queries and is sent their `item_scores`, then yields weights and
is sent what they pool of the items, and returns its answer. Several on one history go side by side."""


def read(history: History, *readings: Reading[Any]) -> list[Any]:
    """The answer of each reading of a history; whatever they ask of its items is asked in the same two products."""
    queries = [next(reading) for reading in readings]
    scores = _shared_out(history.item_scores_of(*chain(*queries)), queries)
    weights = [reading.send(parts) for reading, parts in zip(readings, scores, strict=True)]
    pooled = _shared_out(history.item_pool_of(*chain(*weights)), weights)
    answers = []
    for reading, parts in zip(readings, pooled, strict=True):
        try:
            reading.send(parts)
        except StopIteration as end:
            answers.append(end.value)
    return answers


def times(rows: Tensor, weight: Tensor) -> Tensor:
    """(..., D) through one matrix (D, E): (..., E).

    Laid flat first: ``@`` decides by what requires gradients whether to, and so rounds otherwise for frozen weights.
    """
    return torch.mm(rows.reshape(-1, rows.shape[-1]), weight).view(*rows.shape[:-1], weight.shape[-1])


def _shared_out(answers: Sequence[Tensor], asked: list[Sequence[Tensor]]) -> list[list[Tensor]]:
    rest = iter(answers)
    return [list(islice(rest, len(parts))) for parts in asked]


def _scores(queries: Sequence[Tensor], events: Tensor, reads: Reads | None = None) -> tuple[Tensor, ...]:
    """Each of several (C, G, Q, D) with events (C, L, D): (C, G, Q, L)."""
    if not queries:
        return ()
    rows = [query.flatten(1, 2).to(events.dtype) for query in queries]
    scores = _Scores.apply(events, reads, *rows)
    return tuple(part.unflatten(1, query.shape[1:3]) for part, query in zip(scores, queries, strict=True))


def _pool(weights: Sequence[Tensor], events: Tensor, reads: Reads | None = None) -> tuple[Tensor, ...]:
    """Each of several (C, G, Q, L) over events (C, L, D): (C, G, Q, D)."""
    if not weights:
        return ()
    rows = [weight.flatten(1, 2).to(events.dtype) for weight in weights]
    pooled = _Pool.apply(events, reads, *rows)
    return tuple(part.unflatten(1, weight.shape[1:3]) for part, weight in zip(pooled, weights, strict=True))


def _working_type(weight: Tensor) -> torch.dtype:
    """The type products are made in: what autocast asks for, so that it casts the history once and not at each read."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def _backward_pass() -> int:
    """Which backward pass this is; torch uses the same number to keep recomputed activations apart."""
    return torch._C._current_graph_task_id()  # noqa: SLF001 - torch has no public name for it

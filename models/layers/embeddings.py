"""From indices and codes to vectors: item and user tables, feature fields, and the context of an event.

Row 0 of every table and code 0 of every field mean "unknown"; so does any index beyond a table, so that an item that
arrived after training is read as unknown and never as another item.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INITIAL_SCALE = 0.05
RECENCY_BUCKETS = 32
VALUE_HALF_STEPS = 10
VALUE_CODES = 41
_VALUE_REACH = VALUE_CODES // 2


class HeldElsewhere(Protocol):
    """A table of which this process has only some rows, and of the others those that it fetched for a batch."""

    fetched: Tensor | None

    def places(self, index: Tensor) -> Tensor:
        """Where rows stand in ``fetched``."""


class RowTable(nn.Module):
    """A table of which a step touches few rows.

    ``sparse`` makes its gradient hold the touched rows alone, which the touched-row optimisers need; look a table up
    once per step, since each look-up makes a gradient of its own. ``elsewhere`` is set while several processes train
    and share the table out among them (`models.training.distributed`); ``weight`` is then this process's share.

    Shapes:
        weight: (rows, D)
        index:  any shape, long; returns that shape + (D,)
    """

    def __init__(self, rows: int, width: int, *, scale: float = INITIAL_SCALE) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, width) * scale if scale else torch.zeros(rows, width))
        self.sparse = False
        self.elsewhere: HeldElsewhere | None = None

    def forward(self, index: Tensor) -> Tensor:
        rows, place = self.at_hand(index)
        return F.embedding(place, rows, sparse=self.sparse)

    def at_hand(self, *index: Tensor) -> tuple[Tensor, ...]:
        """The rows that can be read, (n, D), and the place of each index in them; unknown ones at that of row 0."""
        if self.elsewhere is None:
            return self.weight, *(known(part, self.weight.shape[0]) for part in index)
        places = [self.elsewhere.places(part) for part in index]
        assert self.elsewhere.fetched is not None
        return self.elsewhere.fetched, *places


class FieldEmbedding(nn.Module):
    """Several categorical fields in one table, each with its own rows; ``sparse`` as in `RowTable`.

    Shapes:
        codes:   (..., F) long; a code outside its field's vocabulary is read as 0, unknown
        sum:     (..., D), the fields' vectors added up
        tokens:  (..., F, D), one vector a field
    """

    first: Tensor
    sizes: Tensor

    def __init__(self, sizes: tuple[int, ...], width: int) -> None:
        super().__init__()
        if any(size < 1 for size in sizes):
            raise ValueError(f"every field needs at least the row of the unknown, got sizes {sizes}")
        self.width = width
        count = torch.tensor(sizes, dtype=torch.long)
        self.register_buffer("sizes", count, persistent=False)
        self.register_buffer("first", torch.cumsum(count, 0) - count, persistent=False)
        self.weight = nn.Parameter(torch.randn(sum(sizes), width) * INITIAL_SCALE)
        self.sparse = False

    def __len__(self) -> int:
        return self.sizes.shape[0]

    def rows(self, codes: Tensor) -> Tensor:
        """Rows of ``weight`` that the codes stand for, the codes' shape."""
        if codes.shape[-1] != len(self):
            raise ValueError(f"expected codes of {len(self)} fields, got {codes.shape[-1]}")
        inside = (codes >= 0) & (codes < self.sizes)
        return torch.where(inside, codes, 0) + self.first

    def sum(self, codes: Tensor) -> Tensor:
        if not len(self):
            return self.weight.new_zeros(*codes.shape[:-1], self.width)
        rows = self.rows(codes)
        # The bag adds while it reads: nothing of size (..., F, D) is written.
        bags = F.embedding_bag(rows.reshape(-1, len(self)), self.weight, mode="sum", sparse=self.sparse)
        return bags.view(*codes.shape[:-1], self.width)

    def tokens(self, codes: Tensor) -> Tensor:
        if not len(self):
            return self.weight.new_zeros(*codes.shape[:-1], 0, self.width)
        return F.embedding(self.rows(codes), self.weight, sparse=self.sparse)


class ItemTable(nn.Module):
    """The items of one catalogue: a row each, the codes of their features, and the mean label of each.

    Shapes:
        codes:  (V, F) long, fixed
        means:  (V,) float, fixed before training; ``mean`` for all where nothing is known
        index:  any shape, long, into the V items
    """

    codes: Tensor
    means: Tensor

    def __init__(
        self,
        rows: int,
        width: int,
        codes: Tensor | None,
        fields: int,
        *,
        scale: float = INITIAL_SCALE,
        mean: float = 0.5,
    ) -> None:
        super().__init__()
        if codes is None:
            codes = torch.zeros(rows, fields, dtype=torch.long)
        if tuple(codes.shape) != (rows, fields):
            raise ValueError(f"item codes must have shape {(rows, fields)}, got {tuple(codes.shape)}")
        self.rows = RowTable(rows, width, scale=scale)
        self.register_buffer("codes", codes.detach().clone().long())
        self.register_buffer("means", torch.full((rows,), float(mean)))

    def __len__(self) -> int:
        return self.codes.shape[0]

    def set_means(self, means: Tensor) -> None:
        """Say what each item gets on average, (V,); row 0 is the overall mean.

        Raises:
            ValueError: not one number an item.
        """
        if means.shape != self.means.shape:
            raise ValueError(f"expected {len(self)} means, got shape {tuple(means.shape)}")
        self.means.copy_(means)

    def mean_of(self, index: Tensor) -> Tensor:
        """Mean label of items, ``index``'s shape; that of row 0 for unknown ones."""
        return self.means[known(index, len(self))]

    def features(self, index: Tensor) -> Tensor:
        """Feature codes of stored items, ``index``'s shape + (F,)."""
        rows = known(index, len(self)).reshape(-1)
        return self.codes.index_select(0, rows).view(*index.shape, self.codes.shape[1])


class EventContext(nn.Module):
    """What is known of an event beside its item: the action, the value and how long ago it was.

    One small table holds all three vocabularies. Recency is seen from the scored row, so it differs between rows that
    share a history; that is why attention reads it through codes and never as stored vectors.

    Shapes:
        action, value:        (C, L)
        time:                 (C, L) microseconds;  now: (C, G) microseconds
        codes(...):           action and value codes (C, 1, L), recency code (C, G, L); rows of ``weight``
        weight:               (actions + VALUE_CODES + RECENCY_BUCKETS, D)
    """

    def __init__(self, actions: int, width: int) -> None:
        super().__init__()
        self.actions = max(1, actions)
        self.weight = nn.Parameter(torch.randn(self.actions + VALUE_CODES + RECENCY_BUCKETS, width) * INITIAL_SCALE)

    def codes(self, action: Tensor, value: Tensor, time: Tensor, now: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return (
            known(action, self.actions)[:, None],
            value_code(value)[:, None] + self.actions,
            recency_bucket(now[:, :, None] - time[:, None]) + (self.actions + VALUE_CODES),
        )

    def paired(self, codes: tuple[Tensor, Tensor, Tensor]) -> tuple[tuple[Tensor, ...], Tensor]:
        """The same context in fewer look-ups: one code for action and value, and a table of the pairs that occur.

        Where more pairs occur than there are rows, nothing is gained: then all stays as it is.

        Shapes: pair code (C, 1, L) and recency code (C, G, L), rows of a table (pairs + RECENCY_BUCKETS, D)
        """
        action, value, recency = codes
        first_value, first_recency = self.actions, self.actions + VALUE_CODES
        pair = action * VALUE_CODES + (value - first_value)
        found = torch.bincount(pair.view(-1), minlength=self.actions * VALUE_CODES).nonzero()[:, 0]
        if len(found) > first_recency:
            return codes, self.weight
        place = pair.new_zeros(self.actions * VALUE_CODES)
        place[found] = torch.arange(len(found), device=place.device)
        both = self.weight[found // VALUE_CODES] + self.weight[first_value + found % VALUE_CODES]
        table = torch.cat([both, self.weight[first_recency:]])
        return (place[pair], recency + (len(found) - first_recency)), table

    def vectors(self, codes: tuple[Tensor, ...]) -> Tensor:
        """The three vectors of each event added up, (C, G, L, D)."""
        return context_vectors(torch.stack(torch.broadcast_tensors(*codes), -1), self.weight)


def context_vectors(codes: Tensor, table: Tensor) -> Tensor:
    """Sums of rows of a small table, (..., K) codes and (N, D) rows: (..., D).

    A product with a table of ones and zeros: its gradient is a product too, where that of a bag of look-ups adds row by
    row. No two codes of one event may be equal.
    """
    chosen = table.new_zeros(*codes.shape[:-1], table.shape[0]).scatter_(-1, codes, 1)
    return chosen @ table


def recency_bucket(gap_us: Tensor) -> Tensor:
    """log2 bucket of a time gap in seconds, 0 below one second, at most RECENCY_BUCKETS - 1."""
    seconds = gap_us.float().clamp_(min=0).mul_(1e-6)
    return seconds.add_(1).log2_().long().clamp_(max=RECENCY_BUCKETS - 1)


def value_code(value: Tensor) -> Tensor:
    """Code of an event's value: half steps up to 5 either side of zero, then doublings; not a number is read as 0."""
    size = value.abs().nan_to_num(nan=0.0)
    fine = 2 * size
    coarse = VALUE_HALF_STEPS + torch.log2((size / (VALUE_HALF_STEPS / 2)).clamp(min=1))
    steps = torch.where(fine <= VALUE_HALF_STEPS, fine, coarse).round().clamp(max=_VALUE_REACH)
    return (torch.where(value < 0, -steps, steps) + _VALUE_REACH).long()


def known(index: Tensor, rows: int) -> Tensor:
    """The index, and 0 where it lies outside the table."""
    return torch.where((index >= 0) & (index < rows), index, 0)

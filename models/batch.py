"""The one batch type that every network takes.

Symbols, used in every docstring of this package:

    B  scored rows (a user looks at an item)      U  stored histories (rows of one user share one), U <= B
    L  stored events of a history                 D  embedding width
    F  item feature fields                        P  user profile fields
    C  context fields                             M  domain tokens

A history is stored once for all rows that read it. Row ``b`` reads stored history ``row[b]`` and sees of it only
positions ``start[b] <= position < stop[b]``: the events strictly before its own time, at most as many as the network
asks for. Events lie oldest first. Positions outside are padding or the future, and no score may depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Self, TypeVar

import torch
from torch import Tensor


@dataclass(frozen=True)
class Events:
    """Stored histories and what each row may see of them.

    Shapes:
        item:   (U, L) long, row of the item table that the history's items live in; 0 is out of vocabulary
        action: (U, L) long, code of the action (view, click, buy); 0 is unknown
        value:  (U, L) float, the event's label in its domain's own unit (rating, dwell, 1 for a click)
        time:   (U, L) long, microseconds since the epoch
        row:    (B,) long, which stored history each scored row reads
        start, stop: (B,) long, the visible positions [start, stop)
    """

    item: Tensor
    action: Tensor
    value: Tensor
    time: Tensor
    row: Tensor
    start: Tensor
    stop: Tensor

    def mask(self) -> Tensor:
        """Visible events of each scored row, (B, L) bool."""
        position = torch.arange(self.item.shape[1], device=self.item.device)
        return (position >= self.start[:, None]) & (position < self.stop[:, None])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        return _each(self, lambda part: part.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Self:
        return _each(self, lambda part: part.pin_memory())


@dataclass(frozen=True)
class Batch:
    """Rows to score, with everything a network may read about them.

    Shapes:
        domain:        (B,) long, slot of the domain the row is scored in
        user:          (B,) long, index of the user; 0 is unknown
        item:          (B,) long, row in the item table of the row's own domain; 0 is out of vocabulary
        item_features: (B, F) long, feature codes of the item; 0 is missing or unseen
        user_features: (B, P) long, profile codes
        context:       (B, C) long, context codes
        time:          (B,) long, microseconds since the epoch
        label:         (B,) float, 0 or 1 for clicks, the rating otherwise
        weight:        (B,) float, the row's weight in the loss
        offset:        (B,) float, what is expected without personalisation, in the head's unit (logit or rating);
                       0 where the network has no offset track
        lifelong:      the long source history, up to 2,000 events
        short_source:  the latest source events, or None
        short_target:  the latest events in the row's own domain, or None; items of the row's own domain table
        key:           (B,) long, which row of the data this is, the same in every epoch; None where nobody asks
    """

    domain: Tensor
    user: Tensor
    item: Tensor
    item_features: Tensor
    user_features: Tensor
    context: Tensor
    time: Tensor
    label: Tensor
    weight: Tensor
    offset: Tensor
    lifelong: Events
    short_source: Events | None = None
    short_target: Events | None = None
    key: Tensor | None = None

    def __len__(self) -> int:
        return self.item.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Self:
        """The same batch on another device."""
        return _each(self, lambda part: part.to(device, non_blocking=non_blocking))

    def pinned(self) -> Self:
        """The same batch in memory that a GPU copies from while the processor goes on."""
        return _each(self, lambda part: part.pin_memory())

    def rows(self, index: Tensor) -> Self:
        """The scored rows at ``index``, (B',) long or (B,) bool; stored histories stay whole and shared."""
        chosen = {
            f.name: getattr(self, f.name)[index] for f in fields(self) if isinstance(getattr(self, f.name), Tensor)
        }
        for name in ("lifelong", "short_source", "short_target"):
            events = getattr(self, name)
            if events is not None:
                chosen[name] = replace(
                    events, row=events.row[index], start=events.start[index], stop=events.stop[index]
                )
        return replace(self, **chosen)


T = TypeVar("T", bound=Events | Batch)


def _each(value: T, change: Callable[[Any], Any]) -> T:
    parts: dict[str, Any] = {f.name: getattr(value, f.name) for f in fields(value)}
    return replace(value, **{name: change(part) for name, part in parts.items() if part is not None})


@dataclass(frozen=True)
class Arrangement:
    """Rows laid out in C chunks of G cells, so that one chunk reads one stored history for all its rows.

    Rows of a chunk share every stored history and the domain. A cell that no row fills repeats a row of its own chunk,
    so there is nothing to mask; its answer is dropped. At most about twice as many cells as rows are made.

    Shapes:
        row_of_cell: (C * G,) long, or None where cells are the rows in their own order
        cell_of_row: (B,) long, or None likewise
    """

    chunks: int
    per_chunk: int
    row_of_cell: Tensor | None
    cell_of_row: Tensor | None

    def back(self, answers: Tensor) -> Tensor:
        """Answers of the cells, (C * G, ...), as answers of the rows, (B, ...)."""
        return answers if self.cell_of_row is None else answers[self.cell_of_row]


def arrange(batch: Batch) -> tuple[Batch, Arrangement]:
    """Lay a batch out in chunks: the batch of its cells, whose events hold one stored history a chunk, and the layout.

    Works for any order and any mix of users and domains. In the result, cell ``i`` reads stored history
    ``i // per_chunk`` of each of its events, and columns that no row can see are cut away.
    """
    histories = [events for events in (batch.lifelong, batch.short_source, batch.short_target) if events is not None]
    key = batch.domain
    for events in histories:
        key = torch.unique(key * events.item.shape[0] + events.row, return_inverse=True)[1]
    rows = key.shape[0]
    size = torch.bincount(key)
    per_chunk = max(1, -(-rows // max(1, size.numel())))
    if per_chunk == 1 and rows == size.numel():
        return _chunked(batch, per_chunk), Arrangement(rows, 1, None, None)
    order = torch.argsort(key, stable=True)
    group = key[order]
    first_row = torch.cumsum(size, 0) - size
    position = torch.arange(rows, device=key.device) - first_row[group]
    chunks_of_group = (size + per_chunk - 1) // per_chunk
    first_chunk = torch.cumsum(chunks_of_group, 0) - chunks_of_group
    cell = (first_chunk[group] + position // per_chunk) * per_chunk + position % per_chunk
    chunks = int(chunks_of_group.sum())
    # Every chunk has a row in its first cell: cells left empty repeat that one.
    row_of_cell = order.new_full((chunks * per_chunk,), -1)
    row_of_cell[cell] = order
    leader = row_of_cell.view(chunks, per_chunk)[:, :1].expand(chunks, per_chunk).reshape(-1)
    row_of_cell = torch.where(row_of_cell < 0, leader, row_of_cell)
    if chunks * per_chunk == rows and torch.equal(cell, order):
        return _chunked(batch, per_chunk), Arrangement(chunks, per_chunk, None, None)
    cell_of_row = torch.empty_like(cell)
    cell_of_row[order] = cell
    return _chunked(batch.rows(row_of_cell), per_chunk), Arrangement(chunks, per_chunk, row_of_cell, cell_of_row)


def _chunked(cells: Batch, per_chunk: int) -> Batch:
    """``cells`` with one stored history a chunk, cut to the columns that some row can see."""
    chosen: dict[str, Any] = {}
    for name in ("lifelong", "short_source", "short_target"):
        events: Events | None = getattr(cells, name)
        if events is None:
            continue
        stored = events.row[::per_chunk]
        parts = {part: getattr(events, part) for part in ("item", "action", "value", "time")}
        if not events.item.shape[1]:
            # One column that nobody sees: networks then never meet a history of no columns.
            parts = {part: tensor.new_zeros(len(tensor), 1) for part, tensor in parts.items()}
        low = min(int(events.start.min()), parts["item"].shape[1] - 1) if len(stored) else 0
        high = max(int(events.stop.max()), low + 1) if len(stored) else None
        chosen[name] = Events(
            **{part: tensor[stored, low:high] for part, tensor in parts.items()},
            row=torch.arange(len(stored), device=stored.device).repeat_interleave(per_chunk),
            start=(events.start - low).clamp(min=0),
            stop=events.stop - low,
        )
    return replace(cells, **chosen)

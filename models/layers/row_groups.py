"""Rows that see a history alike: those minutes apart mostly see the same events in the same buckets of recency.

C  chunks    G  cells a chunk    N  groups, C <= N <= C * G
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class RowGroups:
    """What cells see, each run of neighbours that see the same as one group; in the order of the cells.

    Shapes:
        shape:   (C, G) of the cells
        first:   (N,) the first cell of each group, in C * G
        of_cell: (C * G,) which group each cell is in
    """

    shape: tuple[int, int]
    first: Tensor
    of_cell: Tensor

    @classmethod
    def of(cls, *parts: Tensor) -> RowGroups:
        """A cell opens a group where any of the parts, each (C, G, ...), differs from the cell before."""
        chunks, cells = parts[0].shape[:2]
        opens = torch.ones(chunks, cells, dtype=torch.bool, device=parts[0].device)
        opens[:, 1:] = torch.stack([(part[:, 1:] != part[:, :-1]).flatten(2).any(-1) for part in parts]).any(0)
        return cls((chunks, cells), opens.view(-1).nonzero()[:, 0], opens.view(-1).cumsum(0) - 1)

    def __len__(self) -> int:
        return self.first.shape[0]

    @cached_property
    def chunk(self) -> Tensor:
        """The chunk of each group, (N,)."""
        return self.first // self.shape[1]

    @cached_property
    def _most(self) -> int:
        return int(torch.bincount(self.chunk).max())

    @cached_property
    def _place(self) -> Tensor:
        """Where each group stands in C * most."""
        first_of_chunk = self.of_cell.view(self.shape)[:, 0]
        rank = torch.arange(len(self), device=self.first.device) - first_of_chunk[self.chunk]
        return self.chunk * self._most + rank

    def seen(self, part: Tensor) -> Tensor:
        """What each group sees of (C, G or 1, ...): (N, 1, ...)."""
        if part.shape[1] == 1:
            return part.index_select(0, self.chunk)
        return part.flatten(0, 1).index_select(0, self.first)[:, None]

    def of_cells(self, part: Tensor) -> Tensor:
        """What each cell's group got: (N, 1, ...) as (C, G, ...)."""
        return part[:, 0].index_select(0, self.of_cell).unflatten(0, self.shape)

    def by_chunk(self, part: Tensor) -> Tensor:
        """Groups of a chunk beside each other: (N, 1, ...) as (C, most groups a chunk, ...), else zero."""
        joined = part.new_zeros(self.shape[0] * self._most, *part.shape[2:])
        return joined.index_copy(0, self._place, part[:, 0]).unflatten(0, (self.shape[0], self._most))

    def one_by_one(self, part: Tensor) -> Tensor:
        """The way back from `by_chunk`."""
        return part.flatten(0, 1).index_select(0, self._place)[:, None]

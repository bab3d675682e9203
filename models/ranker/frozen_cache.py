"""What frozen weights alone make of a row, computed once for all epochs of a fine-tune.

While one domain is tuned, the rest of the network stands still. Three things of a row then never change, whatever the
domain's own items and attention become:

- its facts, and the item's mean;
- what profile, context and facts add to the first layer of the head;
- the second moment of its history, sum of e e^T over the events it may see. The pyramid's complete-scope attention is
  linear in it: sum of (q . e) e is q times that matrix. So its pooling, and the gradient of it, cost nothing of the
  history's length.

All of it is made in one pass over the rows before the first step, in an order of its own: a run that continues from a
checkpoint keeps the very same numbers. Item vectors of histories are not kept: reading a copy costs what gathering
them does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from models.batch import Batch, Events

if TYPE_CHECKING:
    from models.ranker.network import Ranker

LONG_FROM = 3
"""Events, in widths, from which a history's moment is quicker to read than its events."""
ROWS_AT_ONCE = 16
"""Stored histories whose item vectors are looked up together to make moments of them."""


@dataclass(frozen=True)
class Kept:
    """What is kept of N rows, found by `Batch.key`.

    Shapes:
        facts:   (N, EVIDENCE or WIDE); mean: (N,) the item's mean in the score's unit
        share:   (N, H), what all inputs that stand still, and the bias, add to the first layer of the head
        moving:  (H, I), weight of that layer for the other inputs
        moments: (S, D, D) of windows onto histories; window: (N,) which of them, -1 where there was no room
    """

    facts: Tensor
    mean: Tensor
    share: Tensor
    moving: Tensor
    moments: Tensor
    window: Tensor

    def first_layer(self, inputs: Tensor, key: Tensor) -> Tensor:
        """The first layer of the head: (n, I) inputs that move, (n,) keys -> (n, H)."""
        return torch.addmm(self.share.index_select(0, key), inputs, self.moving.t())

    def moment(self, key: Tensor) -> Tensor | None:
        """Second moments of the histories of rows (n,), (n, D, D); None unless that of each is kept."""
        if not len(self.moments):
            return None
        window = self.window.index_select(0, key)
        return None if bool((window < 0).any()) else self.moments.index_select(0, window)


@contextmanager
def keeping(ranker: Ranker, batches: Iterable[Batch], rows: int, *, limit: int) -> Iterator[None]:
    """While it lasts, the ranker uses what `keep` makes of these batches."""
    ranker.kept = keep(ranker, batches, rows, limit=limit)
    try:
        yield
    finally:
        ranker.kept = None


@torch.no_grad()
def keep(ranker: Ranker, batches: Iterable[Batch], rows: int, *, limit: int) -> Kept | None:
    """What the ranker's frozen weights make of rows; None where it does not fit.

    Args:
        batches: every row once, each with a key below ``rows``; rows of one user are best together.
        limit: bytes to hold at most. Moments of histories are kept as far as there is room; where not even the rest
            fits, nothing is.

    Raises:
        ValueError: something beside one domain is trained.
    """
    if ranker.tuned_slot is None:
        raise ValueError("weights that train change what is made of a row: freeze all but one domain first")
    device = ranker.free_token.device
    first, still = ranker.head[0], ranker.still_inputs().to(device)
    assert isinstance(first, torch.nn.Linear)
    kind: dict[str, Any] = {"dtype": first.weight.dtype, "device": device}
    facts = torch.empty(rows, ranker.evidence.shape[0], **kind)
    mean, share = torch.empty(rows, **kind), torch.empty(rows, first.out_features, **kind)
    window = torch.full((rows,), -1, device=device)
    room = limit - sum(part.nbytes for part in (facts, mean, share, window))
    if room < 0:
        return None
    width, used = ranker.config.width, 0
    at_most = min(rows, room // (first.weight.element_size() * width * width)) if ranker.reads_moments() else 0
    moments = torch.empty(at_most, width, width, **kind)  # on a CPU, what is never written takes no memory
    weight = first.weight[:, still]
    for batch in batches:
        here = batch.to(device)
        assert here.key is not None
        facts[here.key], mean[here.key] = ranker.facts_and_mean(here)
        share[here.key] = F.linear(ranker.standing(here, facts[here.key]), weight, first.bias)
        if len(moments) and here.lifelong.item.shape[1] >= LONG_FROM * width:
            made, place = _moments(ranker, here.lifelong, len(moments) - used)
            moments[used : used + len(made)] = made
            window[here.key] = torch.where(place < len(made), place + used, -1)
            used += len(made)
    return Kept(facts, mean, share, first.weight[:, ~still].contiguous(), moments[:used], window)


def _moments(ranker: Ranker, events: Events, most: int) -> tuple[Tensor, Tensor]:
    """Second moments of the different windows that rows see, at most so many, and the place of each row's window."""
    places = events.item.shape[1] + 1
    code = (events.row * places + events.start) * places + torch.maximum(events.start, events.stop)
    windows, place = torch.unique(code, return_inverse=True)
    width = ranker.config.width
    made = ranker.free_token.new_empty(min(len(windows), most), width, width)
    first = 0
    stored: Tensor | None = None
    for number, code_of_window in enumerate(windows[: len(made)].tolist()):
        row, start, stop = code_of_window // places**2, code_of_window // places % places, code_of_window % places
        if stored is None or row >= first + len(stored):
            first = row
            stored = ranker.source_item_vectors(events.item[first : first + ROWS_AT_ONCE])
        part = stored[row - first, start:stop]
        torch.mm(part.t(), part, out=made[number])
    return made, place

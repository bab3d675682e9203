"""Making the frozen-activation cache: one pass over all rows of a fine-tune before its first step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn import functional as F

from models.batch import Batch
from models.ranker.frozen_cache import FrozenCache
from models.ranker.network import Ranker


@contextmanager
def keeping(ranker: Ranker, batches: Iterable[Batch], rows: int, *, limit: int) -> Iterator[None]:
    """While it lasts, the ranker uses what `keep` makes of these batches."""
    ranker.kept = keep(ranker, batches, rows, limit=limit)
    try:
        yield
    finally:
        ranker.kept = None


@torch.no_grad()
def keep(ranker: Ranker, batches: Iterable[Batch], rows: int, *, limit: int) -> FrozenCache | None:
    """What the ranker's frozen weights make of rows; None where that takes more than ``limit`` bytes.

    Args:
        batches: every row once, each with a key below ``rows``; rows of one user are best together.

    Raises:
        ValueError: something beside one domain is trained.
    """
    if ranker.tuned_slot is None:
        raise ValueError("weights that train change what is made of a row: freeze all but one domain first")
    device = ranker.free_token.device
    first, still = ranker.head[0], ranker.still_inputs().to(device)
    assert isinstance(first, torch.nn.Linear)
    kind: dict[str, Any] = {"dtype": first.weight.dtype, "device": device}
    wide = torch.empty(rows, ranker.evidence.shape[0], **kind)
    mean, share = torch.empty(rows, **kind), torch.empty(rows, first.out_features, **kind)
    if sum(part.nbytes for part in (wide, mean, share)) > limit:
        return None
    weight = first.weight[:, still]
    for batch in batches:
        here = batch.to(device)
        assert here.key is not None
        wide[here.key], mean[here.key] = ranker.facts_and_mean(here)
        share[here.key] = F.linear(ranker.standing(here, wide[here.key]), weight, first.bias)
    return FrozenCache(wide, mean, share, first.weight[:, ~still].contiguous())

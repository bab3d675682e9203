"""Making the frozen-activation cache: one pass over all rows of a fine-tune before its first step."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from models.batch import Batch
from models.ranker.frozen_cache import FrozenCache
from models.ranker.network import Ranker


@torch.no_grad()
def frozen_cache(ranker: Ranker, batches: Iterable[Batch], rows: int, *, limit: int) -> FrozenCache | None:
    """Frozen activations of rows, for `Ranker.using`; None where they take more than ``limit`` bytes.

    Args:
        batches: every row once, each with a key below ``rows``; rows of one user are best together.

    Raises:
        ValueError: something beside domains' own weights is trained.
    """
    if not ranker.frozen:
        raise ValueError("weights that train change what is made of a row: freeze all but one domain first")
    weight = ranker.head.first.weight
    kind: dict[str, Any] = {"dtype": weight.dtype, "device": weight.device}
    wide, mean = torch.empty(rows, ranker.config.wide_features, **kind), torch.empty(rows, **kind)
    share = torch.empty(rows, len(weight), **kind)
    if sum(part.nbytes for part in (wide, mean, share)) > limit:
        return None
    for batch in batches:
        here = batch.to(weight.device)
        assert here.key is not None
        wide[here.key], mean[here.key] = ranker.wide_features(here)
        share[here.key] = ranker.frozen_share(here, wide[here.key])
    return FrozenCache(wide, mean, share, ranker.head.moving_weight())

"""What frozen weights alone make of rows, computed once for all epochs of a fine-tune.

While one domain is tuned, the rest of the network is frozen. Two things of a row then never change, whatever the
domain's own items and attention become: its wide features with its item's mean, and what profile, context and wide
features add to the first layer of the head. `precompute` makes them in one pass over the rows before the first step, in
an order of its own, so a run that continues from a checkpoint reads the very same numbers.

Item vectors of histories are not stored: reading a copy costs what gathering them does.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class FrozenCache:
    """Frozen activations of N rows, found by `Batch.key`.

    Shapes (H units of the head's first layer, I inputs of it that still change):
        wide:   (N, F) wide features; mean: (N,) the item's mean in the score's unit
        share:  (N, H), what all frozen inputs, and the bias, add to the first layer
        moving: (H, I), weight of that layer for the other inputs
    """

    wide: Tensor
    mean: Tensor
    share: Tensor
    moving: Tensor

    def first_layer(self, inputs: Tensor, key: Tensor) -> Tensor:
        """The first layer of the head from inputs that still change: (n, I) and keys (n,) -> (n, H)."""
        return torch.addmm(self.share.index_select(0, key), inputs, self.moving.t())

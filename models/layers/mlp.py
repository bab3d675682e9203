"""The head: a multilayer perceptron over vectors and wide features (DACDR eq. 7)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def head_layers(inputs: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """FC of DACDR eq. (7): ReLU layers and one output."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(inputs, size), nn.ReLU()]
        inputs = size
    last = nn.Linear(inputs, 1)
    # The item's mean is where scores start from, so the network itself starts from nothing.
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


class Head(nn.Module):
    """ŷ = FC([vectors ; wide features]), DACDR eq. (7), without the sigmoid.

    Its inputs stand in the order (I in all): the candidate, ``frozen`` inputs in which no weight of a target domain has
    a part, the other vectors, and the wide features, which are frozen too.

    Shapes (n rows, H units of the last hidden layer):
        vectors (n, I - wide), features (n, wide); state (n, H); score (n,)
    """

    def __init__(self, inputs: int, hidden: tuple[int, ...], *, candidate: int, frozen: int, wide: int) -> None:
        super().__init__()
        self.layers = head_layers(inputs + wide, hidden)
        mask = torch.zeros(inputs + wide, dtype=torch.bool)
        mask[candidate : candidate + frozen] = True
        mask[inputs:] = True
        self.register_buffer("frozen_mask", mask, persistent=False)

    frozen_mask: Tensor
    """(I,), which inputs are frozen."""

    @property
    def first(self) -> nn.Linear:
        layer = self.layers[0]
        assert isinstance(layer, nn.Linear)
        return layer

    @property
    def last(self) -> nn.Linear:
        layer = self.layers[-1]
        assert isinstance(layer, nn.Linear)
        return layer

    def first_layer(self, vectors: Tensor, features: Tensor) -> Tensor:
        """The first layer before its ReLU: vectors apart from the few features, beside which no row is aligned."""
        of_vectors, of_features = self.first.weight.split([vectors.shape[1], features.shape[1]], 1)
        return torch.addmm(F.linear(features, of_features, self.first.bias), vectors, of_vectors.contiguous().t())

    def frozen_share(self, frozen: Tensor) -> Tensor:
        """What frozen inputs, in their order, and the bias add to the first layer."""
        return F.linear(frozen, self.first.weight[:, self.frozen_mask], self.first.bias)

    def moving_weight(self) -> Tensor:
        """Weight of the first layer for the inputs that are not frozen."""
        return self.first.weight[:, ~self.frozen_mask].contiguous()

    def state(self, first: Tensor) -> Tensor:
        """The last hidden layer from `first_layer`."""
        return self.layers[1:-1](first)

    def score(self, state: Tensor) -> Tensor:
        return self.last(state).view(-1)

"""The head: its layers, and the first of them beside the facts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def head_layers(inputs: int, hidden: tuple[int, ...]) -> nn.Sequential:
    """FC of equation 7: ReLU layers and one output."""
    layers: list[nn.Module] = []
    for size in hidden:
        layers += [nn.Linear(inputs, size), nn.ReLU()]
        inputs = size
    last = nn.Linear(inputs, 1)
    # The item's mean is where scores start from, so the network itself starts from nothing.
    nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)


def first_layer(layer: nn.Linear, inputs: Tensor, facts: Tensor) -> Tensor:
    """The first layer of the head, (n, H): its vectors apart from its few facts, beside which no row is aligned."""
    of_vectors, of_facts = layer.weight.split([inputs.shape[1], facts.shape[1]], 1)
    return torch.addmm(F.linear(facts, of_facts, layer.bias), inputs, of_vectors.contiguous().t())

"""SSCDR (Kang et al. 2019): users and items as points of one space for each domain, and a map between the spaces.

A user lies near what they like. Every point lies in the unit ball (e / max(1, ‖e‖)). Three stages:

    points   for each domain, [m + ‖u - v⁺‖² - ‖u - v⁻‖²]₊ over liked items v⁺ and drawn items v⁻
    map      ‖f(u^s) - u^t‖² + λ [m + ‖u^t - f(v⁺)‖² - ‖u^t - f(v⁻)‖²]₊ over shared users and their source items: the
             second term needs no target rows of the items, hence semi-supervised
    scale    a score is a negative distance, so a line is fitted that carries it to ratings or logits

A cold user lies halfway between f(u^s) and the middle of f(v^s) over what they liked: the paper's inference by
neighbours, with one hop.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.baselines.bridges import user_map
from benchmarks.baselines.factors import Bridge, BridgeConfig, Factors, OnlySharedUsers, TrainingSet, latest_liked
from models.batch import Batch
from models.layers.embeddings import INITIAL_SCALE, RowTable
from models.training.loop import TrainResult


def in_unit_ball(vector: Tensor) -> Tensor:
    """Points outside the unit ball drawn to its surface, others where they are; (..., D)."""
    return vector / vector.norm(dim=-1, keepdim=True).clamp(min=1.0)


def triplet(anchor: Tensor, near: Tensor, far: Tensor, margin: float) -> Tensor:
    """[margin + ‖anchor - near‖² - ‖anchor - far‖²]₊, (B,)."""
    gap = (anchor - near).square().sum(-1) - (anchor - far).square().sum(-1)
    return torch.relu(margin + gap)


class SSCDR(Bridge):
    """See the module. Biases play no part in distances; an item bias joins the fitted line if the config has biases."""

    def __init__(
        self,
        config: BridgeConfig,
        *,
        margin: float = 0.5,
        unsupervised: float = 0.1,
        kind: Literal["linear", "mlp"] = "mlp",
    ) -> None:
        super().__init__(replace(config, biases=False))
        self.margin, self.unsupervised = margin, unsupervised
        for factors, items in ((self.source, config.source_items), (self.target, config.target_items)):
            # Points need a start away from the centre, items too.
            factors.items = RowTable(items, config.width, scale=2 * INITIAL_SCALE)
        self.map = user_map(kind, config.width)
        self.slope = nn.Parameter(torch.ones(()))
        self.level = nn.Parameter(torch.tensor(float(config.target_mean)))
        self.item_bias = RowTable(config.target_items, 1, scale=0.0) if config.biases else None

    def distance(self, factors: Factors, vector: Tensor, item: Tensor) -> Tensor:
        """Squared distance of points (B, D) to items (B,)."""
        return (in_unit_ball(vector) - in_unit_ball(factors.items(item))).square().sum(-1)

    def score_source(self, batch: Batch) -> Tensor:
        """No line is fitted here: nobody asks the source for ratings."""
        return self.source.mean - self.distance(self.source, self.source.user(batch.user), batch.item)

    def score_target(self, batch: Batch) -> Tensor:
        score = self.level - self.slope * self.distance(self.target, self.user_vectors(batch), batch.item)
        return score if self.item_bias is None else score + self.item_bias(batch.item)[:, 0]

    def mapped(self, batch: Batch) -> Tensor:
        items, liked = latest_liked(batch.lifelong, self.config.positive_above, self.config.history)
        neighbours = self._carried_items(items) * liked[..., None]  # [B, K, D]
        count = liked.sum(-1, keepdim=True)
        middle = neighbours.sum(1) / count.clamp(min=1)
        own = self.carried(self.source.user(batch.user))
        return torch.where(count > 0, (own + middle) / 2, own) * self.source.seen[batch.user][:, None]

    def carried(self, vector: Tensor) -> Tensor:
        """f of points of the source's space."""
        return in_unit_ball(self.map(in_unit_ball(vector)))

    def _carried_items(self, items: Tensor) -> Tensor:
        """f of source items, through whichever is fewer: the items asked for, or all there are."""
        table = self.source.items
        if items.numel() < len(table.weight):
            return self.carried(table(items))
        return self.carried(table(torch.arange(len(table.weight), device=items.device)))[items]

    def train_factors(self, given: TrainingSet) -> dict[str, TrainResult]:
        results = {}
        for name, data, factors in (("source", given.source, self.source), ("target", given.target, self.target)):
            learnt = [*factors.users.parameters(), *factors.items.parameters()]
            results[name] = given.train(name, Points(self, factors), data, learnt, own_loss=True)
        return results

    def train_mapping(self, given: TrainingSet) -> TrainResult:
        shared = self.shared_users()
        of_shared = OnlySharedUsers(given.source, shared, self.config.users)
        given.train("map", _Mapping(self), of_shared, self.map.parameters(), own_loss=True)
        line = [self.slope, self.level, *([] if self.item_bias is None else self.item_bias.parameters())]
        # As if they were cold: for such users the line is needed.
        of_shared = OnlySharedUsers(given.target, shared, self.config.users)
        self.map.requires_grad_(requires_grad=False)
        try:
            return given.train("scale", self, of_shared, line, chosen_by="cold")
        finally:
            self.map.requires_grad_(requires_grad=True)


class Points(nn.Module):
    """The first stage as the training loop sees it: its whole loss is the triplets'."""

    def __init__(self, bridge: SSCDR, factors: Factors) -> None:
        super().__init__()
        self.bridge, self.factors = bridge, factors

    def forward(self, batch: Batch) -> Tensor:
        return batch.offset  # a constant: no gradient beside the triplets'

    def auxiliary_loss(self, batch: Batch) -> Tensor:
        table = self.factors.items
        liked = batch.weight * (batch.label > _threshold(self.bridge.config))
        drawn = torch.randint(1, table.weight.shape[0], batch.item.shape, device=batch.item.device)
        liked = liked * (drawn != batch.item)
        user = in_unit_ball(self.factors.users(batch.user))
        near, far = in_unit_ball(table(torch.stack([batch.item, drawn])))
        return (liked * triplet(user, near, far, self.bridge.margin)).sum() / liked.sum().clamp(min=1e-12)


class _Mapping(nn.Module):
    """The second stage as the training loop sees it, over source rows of shared users."""

    def __init__(self, bridge: SSCDR) -> None:
        super().__init__()
        self.bridge = bridge

    def forward(self, batch: Batch) -> Tensor:
        return batch.offset

    def auxiliary_loss(self, batch: Batch) -> Tensor:
        bridge, source = self.bridge, self.bridge.source
        own = in_unit_ball(bridge.target.users(batch.user))
        apart = (bridge.carried(source.users(batch.user)) - own).square().sum(-1)
        liked = batch.weight * (batch.label > _threshold(bridge.config))
        drawn = torch.randint(1, source.items.weight.shape[0], batch.item.shape, device=batch.item.device)
        near, far = bridge.carried(source.items(torch.stack([batch.item, drawn])))
        unsupervised = liked * triplet(own, near, far, bridge.margin)
        # Each shared user counts once in the first term, however many of their rows the batch holds.
        of_user = torch.unique(batch.user, return_inverse=True)[1]
        once = batch.weight / torch.bincount(of_user)[of_user]
        supervised = (once * apart).sum() / once.sum().clamp(min=1e-12)
        return supervised + bridge.unsupervised * unsupervised.sum() / liked.sum().clamp(min=1e-12)


def _threshold(config: BridgeConfig) -> float:
    """Labels above are likes: clicks are 0 or 1, ratings have the config's own bound."""
    return config.positive_above if config.task == "rating" else 0.5

"""Bridges for cold users: CMF, EMCDR, PTUPCDR and TMCDR (SSCDR stands in ``metric_bridge.py``).

Each learns what to expect in the target of a user who is known to the source alone. See ``factors.py`` for the stages.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.baselines.factors import Bridge, BridgeConfig, Interleaved, OnlySharedUsers, TrainingSet, latest_liked
from models.baselines.inputs import masked_softmax
from models.batch import Batch
from models.training.loop import TrainingStep, TrainResult, output_losses


class CMF(Bridge):
    """Collective matrix factorisation (Singh and Gordon 2008): one user table for both domains.

    Minimises α Σ_s ℓ(r, u·v^s) + (1-α) Σ_t ℓ(r, u·v^t) over the interleaved rows of both. Nothing is mapped: a cold
    user's vector is what the source made of it. α keeps the larger domain from ruling by its size alone.
    """

    def __init__(self, config: BridgeConfig, *, source_share: float = 0.5) -> None:
        super().__init__(config)
        if not 0 < source_share < 1:
            raise ValueError(f"source_share is between 0 and 1, not {source_share}")
        self.source_share = source_share
        self.target.users = self.source.users

    def user_vectors(self, batch: Batch) -> Tensor:
        known = self.source.seen[batch.user] | self.target.seen[batch.user]
        return self.source.users(batch.user) * known[:, None]

    def score_source(self, batch: Batch) -> Tensor:
        return self.source.score(self.user_vectors(batch), batch.item)

    def score_target(self, batch: Batch) -> Tensor:
        return self.target.score(self.user_vectors(batch), batch.item)

    def train_factors(self, given: TrainingSet) -> dict[str, TrainResult]:
        result = given.train(
            "both",
            self,
            Interleaved(given.source, given.target, seed=given.config.seed),
            None,
            chosen_by="cold" if "cold" in given.held else "target",
            weigher=ShareWeigher(self.source_share, self.config.target_slot),
        )
        return {"both": result}

    def train_mapping(self, given: TrainingSet) -> None:
        """There is no mapping."""


class ShareWeigher:
    """Factors 2α for source rows and 2(1-α) for target rows: ones at α = ½."""

    def __init__(self, source_share: float, target_slot: int) -> None:
        self._share, self._target_slot = source_share, target_slot

    def begin(self, *_: Any) -> None: ...

    def weigh(self, batch: Batch, step: TrainingStep) -> Tensor:
        in_target = (batch.domain == self._target_slot).float()
        return 2 * (self._share + (1 - 2 * self._share) * in_target)

    def after_step(self, batch: Batch, step: TrainingStep) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class EMCDR(Bridge):
    """Embedding and mapping (Man et al. 2017): learn factors apart, then min_f Σ_shared ‖f(u^s) - u^t‖².

    ``kind`` is the paper's two choices: ``linear``, one matrix, whose least-squares solution is computed outright, with
    a little ridge toward zero; ``mlp``, one hidden layer of twice the width with tanh, fitted on all shared users at
    once (there are no rows in this stage, so no batches), and stopped by a tenth of them held out.
    """

    def __init__(self, config: BridgeConfig, *, kind: Literal["linear", "mlp"] = "linear", ridge: float = 1e-3) -> None:
        super().__init__(config)
        self.kind, self.ridge = kind, ridge
        self.map = user_map(kind, config.user_width)

    def mapped(self, batch: Batch) -> Tensor:
        vector = self.source.user(batch.user)
        return self.map(vector) * self.source.seen[batch.user][:, None]

    def train_mapping(self, given: TrainingSet) -> None:
        shared = self.shared_users()
        if not len(shared):
            raise ValueError("no user has training rows in both domains: there is nothing to fit a mapping on")
        with torch.no_grad():
            from_source, own = self.source.users(shared), self.target.users(shared)
        if isinstance(self.map, nn.Linear):
            self._solve(self.map, from_source, own)
        else:
            fit_map(self.map, from_source, own, seed=given.config.seed)

    @torch.no_grad()
    def _solve(self, linear: nn.Linear, from_source: Tensor, own: Tensor) -> None:
        x, y = from_source.double(), own.double()
        gram = x.T @ x / len(x)
        gram += self.ridge * gram.diagonal().mean() * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
        linear.weight.copy_(torch.linalg.solve(gram, x.T @ y / len(x)).T)


def user_map(kind: Literal["linear", "mlp"], width: int) -> nn.Linear | nn.Sequential:
    """f of EMCDR: a bias-free matrix, or one hidden tanh layer; (..., width) -> (..., width)."""
    if kind == "linear":
        return nn.Linear(width, width, bias=False)
    return nn.Sequential(nn.Linear(width, 2 * width), nn.Tanh(), nn.Linear(2 * width, width))


def fit_map(
    module: nn.Module, from_source: Tensor, own: Tensor, *, seed: int, steps: int = 2000, patience: int = 100
) -> None:
    """Fit ``module`` to carry ``from_source`` (N, W) onto ``own`` (N, W) by full-batch Adam; deterministic.

    Vectors are brought to unit scale for the fit, so that the learning rate does not depend on theirs.
    """
    order = torch.randperm(len(from_source), generator=torch.Generator().manual_seed(seed)).to(from_source.device)
    held = order[: len(order) // 10] if len(order) >= 20 else order
    learnt = order[len(order) // 10 :] if len(order) >= 20 else order
    scale = own.square().mean().sqrt().clamp(min=1e-8)
    optimiser = torch.optim.Adam(module.parameters(), lr=1e-2)
    best, best_step = float("inf"), 0
    kept = {name: part.detach().clone() for name, part in module.state_dict().items()}
    for step in range(steps):
        with torch.no_grad():
            error = float(((module(from_source[held]) - own[held]) / scale).square().sum(-1).mean())
        if error < best - 1e-7:
            best, best_step = error, step
            kept = {name: part.detach().clone() for name, part in module.state_dict().items()}
        if step - best_step > patience:
            break
        optimiser.zero_grad()
        ((module(from_source[learnt]) - own[learnt]) / scale).square().sum(-1).mean().backward()
        optimiser.step()
    module.load_state_dict(kept)


class PTUPCDR(Bridge):
    """Personalised transfer of user preferences (Zhu et al. 2022): a mapping of their own for each user.

    p = Σ_j a_j v_j over what the user liked in the source, a = softmax(MLP(v_j)); W = reshape(MLP(p)); û^t = W u^s,
    which is DACDR eq. (5);
    trained on the ratings themselves, (r - û^t·v^t)², with all factors frozen. Padding is masked out of the softmax; a
    user who liked nothing has p = 0 and gets the common bridge that the network's biases hold.
    """

    def __init__(self, config: BridgeConfig, *, hidden: int = 50) -> None:
        super().__init__(config)
        width, out = config.width, config.user_width
        self.attend = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 1, bias=False))
        self.bridge = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, out * out))

    def characteristic(self, batch: Batch) -> Tensor:
        """p, (B, D)."""
        items, liked = latest_liked(batch.lifelong, self.config.positive_above, self.config.history)
        vectors = self.source.items(items)  # [B, K, D]
        weight = masked_softmax(self.attend(vectors)[..., 0], liked)
        return torch.einsum("bl,bld->bd", weight, vectors)

    def mapped(self, batch: Batch) -> Tensor:
        width = self.config.user_width
        bridge = self.bridge(self.characteristic(batch)).view(-1, width, width)
        return torch.einsum("bij,bj->bi", bridge, self.source.user(batch.user))

    def train_mapping(self, given: TrainingSet) -> TrainResult:
        rows = OnlySharedUsers(given.target, self.shared_users(), self.config.users)
        learnt = [*self.attend.parameters(), *self.bridge.parameters()]
        return given.train("map", self, rows, learnt, chosen_by="cold")


class TMCDR(Bridge):
    """Transfer-meta cold-start (Zhu et al. 2021): learn a mapping that is quick to adapt, by the task's own loss.

    In each step the batch's shared users are parted into two disjoint groups. φ' = φ - step ∇L_support(φ); then φ
    follows ∇L_query(φ'), of first order: the second derivative is left out, as at this size it adds cost alone. A
    linear mapping starts at the identity. Cold users are mapped by φ itself, having no rows to adapt to.
    """

    def __init__(
        self, config: BridgeConfig, *, kind: Literal["linear", "mlp"] = "linear", inner_step: float = 0.01
    ) -> None:
        super().__init__(config)
        self.inner_step = inner_step
        self.map = user_map(kind, config.user_width)
        if isinstance(self.map, nn.Linear):
            nn.init.eye_(self.map.weight)

    def mapped(self, batch: Batch) -> Tensor:
        return self.carried(batch, dict(self.map.named_parameters()))

    def carried(self, batch: Batch, weights: Mapping[str, Tensor]) -> Tensor:
        vector = functional_call(self.map, dict(weights), (self.source.user(batch.user),))
        return vector * self.source.seen[batch.user][:, None]

    def train_mapping(self, given: TrainingSet) -> TrainResult:
        rows = OnlySharedUsers(given.target, self.shared_users(), self.config.users)
        learner = MetaStep(self, given.config.task)
        return given.train("map", learner, rows, self.map.parameters(), chosen_by="cold", own_loss=True)


class MetaStep(nn.Module):
    """TMCDR's mapping stage as the training loop sees it: its whole loss is the query group's."""

    def __init__(self, bridge: TMCDR, task: Literal["ctr", "rating"]) -> None:
        super().__init__()
        self.bridge, self.task = bridge, task

    def forward(self, batch: Batch) -> Tensor:
        # In training the loss is `auxiliary_loss` alone: a constant answer adds no gradient to it.
        return batch.offset if self.training else self.bridge(batch)

    def auxiliary_loss(self, batch: Batch) -> Tensor:
        users, number = torch.unique(batch.user, return_inverse=True)
        in_support = (torch.rand(len(users), device=number.device) < 0.5)[number]
        weights = dict(self.bridge.map.named_parameters())
        support = self._loss(batch, weights, in_support)
        gradients = torch.autograd.grad(support, list(weights.values()))
        adapted = {
            name: part - self.bridge.inner_step * gradient
            for (name, part), gradient in zip(weights.items(), gradients, strict=True)
        }
        return self._loss(batch, adapted, ~in_support)

    def _loss(self, batch: Batch, weights: Mapping[str, Tensor], group: Tensor) -> Tensor:
        vector = self.bridge.carried(batch, weights)
        weight = batch.weight * group
        score = self.bridge.target.score(vector, batch.item) + batch.offset
        return (weight * output_losses(score, batch.label, self.task)).sum() / weight.sum().clamp(min=1e-12)

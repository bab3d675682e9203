"""Baselines that share a network between domains: DNN, Shared-Bottom, MMoE, PLE and STAR.

All of them have hidden layers of the same widths (256-128-64 by default): where a network has a shared part and a
tower, the tower is the last hidden layer. A row runs through its own domain's tower only, so the others get no
gradient from it, and mixed batches are legal everywhere.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from models.baselines.inputs import Baseline, BaselineConfig, each_domain, mlp
from models.batch import Batch
from models.layers.embeddings import INITIAL_SCALE


class DNNSingle(Baseline):
    """One MLP that knows one domain: trained on its rows, reads its histories, borrows nothing."""

    def __init__(self, config: BaselineConfig, item_codes: Tensor | None = None) -> None:
        super().__init__(config, item_codes, reads_source=False)
        self.network = mlp([self.inputs.size, *config.hidden, 1], config.dropout, last_linear=True)

    def personal(self, batch: Batch) -> Tensor:
        return self.network(self.inputs(batch).features)[:, 0]


class DNNMulti(Baseline):
    """The same MLP on the pooled rows of all domains, told which domain a row is from, reading both histories."""

    def __init__(self, config: BaselineConfig, item_codes: Tensor | None = None) -> None:
        super().__init__(config, item_codes)
        self.domain = nn.Embedding(config.domains, config.width)
        nn.init.normal_(self.domain.weight, std=INITIAL_SCALE)
        self.network = mlp([self.inputs.size + config.width, *config.hidden, 1], config.dropout, last_linear=True)

    def personal(self, batch: Batch) -> Tensor:
        return self.network(torch.cat([self.inputs(batch).features, self.domain(batch.domain)], dim=-1))[:, 0]


class Towers(nn.Module):
    """The last hidden layer and the output of each domain: (B, size) -> (B,)."""

    def __init__(self, config: BaselineConfig, size: int) -> None:
        super().__init__()
        self.of = nn.ModuleList(
            mlp([size, config.hidden[-1], 1], config.dropout, last_linear=True) for _ in range(config.domains)
        )

    def forward(self, hidden: Tensor, present: list[tuple[int, Tensor]]) -> Tensor:
        out = hidden.new_zeros(len(hidden))
        for slot, rows in present:
            out = out.index_copy(0, rows, self.of[slot](hidden[rows])[:, 0])
        return out


class SharedBottom(Baseline):
    """One bottom for all domains, a tower for each (Caruana's multi-task network): ŷ_k = t_k(h(x))."""

    def __init__(self, config: BaselineConfig, item_codes: Tensor | None = None) -> None:
        super().__init__(config, item_codes)
        self.bottom = mlp([self.inputs.size, *config.hidden[:-1]], config.dropout)
        self.towers = Towers(config, config.hidden[-2])

    def personal(self, batch: Batch) -> Tensor:
        return self.towers(self.bottom(self.inputs(batch).features), each_domain(batch))


def _gate(size: int, experts: int) -> nn.Linear:
    """A linear gate that hears every expert alike at first, so that none starves before it has learnt."""
    gate = nn.Linear(size, experts, bias=False)
    nn.init.zeros_(gate.weight)
    return gate


class MMoE(Baseline):
    """Multi-gate mixture of experts (Ma et al. 2018, eqs. 5-7): ŷ_k = t_k(Σ_e softmax(G_k x)_e E_e(x)), G_k linear."""

    def __init__(self, config: BaselineConfig, item_codes: Tensor | None = None, *, experts: int = 4) -> None:
        super().__init__(config, item_codes)
        self.experts = nn.ModuleList(
            mlp([self.inputs.size, *config.hidden[:-1]], config.dropout) for _ in range(experts)
        )
        self.gates = nn.ModuleList(_gate(self.inputs.size, experts) for _ in range(config.domains))
        self.towers = Towers(config, config.hidden[-2])

    def _shares(self, x: Tensor, present: list[tuple[int, Tensor]]) -> Tensor:
        """How much each row listens to each expert, (B, experts)."""
        shares = x.new_zeros(len(x), len(self.experts))
        for slot, rows in present:
            shares = shares.index_copy(0, rows, torch.softmax(self.gates[slot](x[rows]), dim=-1))
        return shares

    def personal(self, batch: Batch) -> Tensor:
        x, present = self.inputs(batch).features, each_domain(batch)
        answers = torch.stack([expert(x) for expert in self.experts], dim=1)  # (B, E, H)
        mixed = torch.einsum("be,beh->bh", self._shares(x, present), answers)
        return self.towers(mixed, present)


class CustomizedGate(nn.Module):
    """One CGC layer of PLE (Tang et al. 2020, eqs. 4-7).

    A domain's gate mixes its own experts with the shared ones; the shared gate mixes all experts of all domains. The
    last layer has no shared gate, as nothing reads it.

    The shared path reads every domain's experts, so in the first layer these run on every row: that is the method, and
    the only place where a row meets another domain's part.
    """

    def __init__(
        self, size: int, width: int, domains: int, *, own: int, shared: int, dropout: float, last: bool
    ) -> None:
        super().__init__()
        self.per_domain = own
        self.own = nn.ModuleList(mlp([size, width], dropout) for _ in range(domains * own))
        self.shared = nn.ModuleList(mlp([size, width], dropout) for _ in range(shared))
        self.gates = nn.ModuleList(_gate(size, own + shared) for _ in range(domains))
        self.shared_gate = None if last else _gate(size, own * domains + shared)

    def forward(self, own: Tensor, shared: Tensor, present: list[tuple[int, Tensor]]) -> tuple[Tensor, Tensor]:
        """own, shared (B, size) -> the next layer's own and shared (B, width); the last layer repeats its own."""
        from_shared = [expert(shared) for expert in self.shared]
        mixed = torch.zeros_like(from_shared[0])
        for slot, rows in present:
            mine = own[rows]
            experts = [self.own[slot * self.per_domain + number] for number in range(self.per_domain)]
            heard = torch.stack([e(mine) for e in experts] + [answer[rows] for answer in from_shared], dim=1)
            share = torch.softmax(self.gates[slot](mine), dim=-1)
            mixed = mixed.index_copy(0, rows, torch.einsum("be,beh->bh", share, heard))
        if self.shared_gate is None:
            return mixed, mixed
        everyone = torch.stack([e(shared) for e in self.own] + from_shared, dim=1)
        share = torch.softmax(self.shared_gate(shared), dim=-1)
        return mixed, torch.einsum("be,beh->bh", share, everyone)


class PLE(Baseline):
    """Progressive layered extraction (Tang et al. 2020): a CGC layer for each hidden layer but the tower's.

    At most two of them, so that what the first shared gate mixes are experts of the one common input.
    """

    def __init__(
        self, config: BaselineConfig, item_codes: Tensor | None = None, *, own: int = 1, shared: int = 2
    ) -> None:
        super().__init__(config, item_codes)
        if len(config.hidden) > 3:
            raise ValueError(f"PLE is built of one or two layers and a tower, not of {config.hidden}")
        sizes = [self.inputs.size, *config.hidden[:-1]]
        self.layers = nn.ModuleList(
            CustomizedGate(
                wide,
                narrow,
                config.domains,
                own=own,
                shared=shared,
                dropout=config.dropout,
                last=number == len(sizes) - 2,
            )
            for number, (wide, narrow) in enumerate(pairwise(sizes))
        )
        self.towers = Towers(config, sizes[-1])

    def personal(self, batch: Batch) -> Tensor:
        own = shared = self.inputs(batch).features
        present = each_domain(batch)
        for layer in self.layers:
            own, shared = layer(own, shared, present)
        return self.towers(own, present)


class PartitionedNorm(nn.Module):
    """Normalise each row by the statistics of its own domain (STAR eqs. 4-6).

    z' = γ γ_p (z - μ_p) / √(σ_p² + ε) + β + β_p. In training μ_p, σ_p² are those of the domain's rows of this batch,
    taken as segment means so that mixed batches work; a domain with fewer than two rows in the batch, and every row in
    evaluation, uses the domain's moving averages. So a score never depends on its batch mates in evaluation.

    Shapes: z (B, H), present as from `each_domain` -> (B, H).
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, size: int, domains: int, *, momentum: float = 0.1, epsilon: float = 1e-5) -> None:
        super().__init__()
        self.momentum, self.epsilon = momentum, epsilon
        self.scale, self.shift = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))
        self.domain_scale = nn.Parameter(torch.ones(domains, size))
        self.domain_shift = nn.Parameter(torch.zeros(domains, size))
        self.register_buffer("mean", torch.zeros(domains, size))
        self.register_buffer("variance", torch.ones(domains, size))
        self.register_buffer("batches", torch.zeros(domains, dtype=torch.long))

    def forward(self, z: Tensor, present: list[tuple[int, Tensor]]) -> Tensor:
        out = torch.zeros_like(z)
        for slot, rows in present:
            mine = z[rows]
            if self.training and len(rows) > 1:
                mean, variance = mine.mean(dim=0), mine.var(dim=0, unbiased=False)
                self._remember(slot, mean.detach(), variance.detach() * len(rows) / (len(rows) - 1))
            else:
                mean, variance = self.mean[slot], self.variance[slot]
            normal = (mine - mean) * torch.rsqrt(variance + self.epsilon)
            scaled = self.scale * self.domain_scale[slot] * normal + self.shift + self.domain_shift[slot]
            out = out.index_copy(0, rows, scaled)
        return out

    @torch.no_grad()
    def _remember(self, slot: int, mean: Tensor, variance: Tensor) -> None:
        self.batches[slot] += 1
        # A plain average over the first batches: the start at (0, 1) must not linger in a short training.
        step = max(self.momentum, 1.0 / int(self.batches[slot]))
        self.mean[slot].lerp_(mean, step)
        self.variance[slot].lerp_(variance, step)


class StarLinear(nn.Module):
    """A layer whose weights are shared times own (STAR eq. 7): W = W_p ⊙ W_0, b = b_p + b_0.

    W_0 starts by Glorot and W_p at 1: two Glorot factors multiplied would shrink the signal at every layer.
    """

    def __init__(self, size: int, width: int, domains: int) -> None:
        super().__init__()
        self.shared_weight, self.shared_bias = nn.Parameter(torch.empty(width, size)), nn.Parameter(torch.zeros(width))
        self.own_weight = nn.ParameterList(nn.Parameter(torch.ones(width, size)) for _ in range(domains))
        self.own_bias = nn.ParameterList(nn.Parameter(torch.zeros(width)) for _ in range(domains))
        nn.init.xavier_uniform_(self.shared_weight)

    def forward(self, x: Tensor, slot: int) -> Tensor:
        weight = self.shared_weight * self.own_weight[slot]
        return nn.functional.linear(x, weight, self.shared_bias + self.own_bias[slot])


class STAR(Baseline):
    """Star topology adaptive recommender (Sheng et al. 2021): partitioned norm, star layers, auxiliary network.

    The logit is star(x) + aux([x; domain]) (eq. 8); the star's output is a bare linear unit, free to be negative.
    """

    def __init__(self, config: BaselineConfig, item_codes: Tensor | None = None) -> None:
        super().__init__(config, item_codes)
        self.norm = PartitionedNorm(self.inputs.size, config.domains)
        sizes = [self.inputs.size, *config.hidden, 1]
        self.star = nn.ModuleList(StarLinear(wide, narrow, config.domains) for wide, narrow in pairwise(sizes))
        self.dropout = nn.Dropout(config.dropout)
        self.domain = nn.Embedding(config.domains, config.width)
        nn.init.normal_(self.domain.weight, std=INITIAL_SCALE)
        self.auxiliary = mlp([self.inputs.size + config.width, config.hidden[-1], 1], config.dropout, last_linear=True)

    def personal(self, batch: Batch) -> Tensor:
        x, present = self.inputs(batch).features, each_domain(batch)
        normal = self.norm(x, present)
        star = x.new_zeros(len(x))
        for slot, rows in present:
            hidden = normal[rows]
            for layer in self.star[:-1]:
                hidden = self.dropout(torch.relu(layer(hidden, slot)))
            star = star.index_copy(0, rows, self.star[-1](hidden, slot)[:, 0])
        return star + self.auxiliary(torch.cat([x, self.domain(batch.domain)], dim=-1))[:, 0]

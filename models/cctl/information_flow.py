"""CCTL's information flow network: a weight for every source sample, and three ways to learn it.

The weight w in (0, w_max) lets a sample's information through in part. What tells whether it should pass:

    influence   how much steps on the sample and on target rows help each other, to first order (ours): along the whole
                path of a tower that learns from the target alone (``influence.py``), or at the present point
    reinforce   how much the mixed tower beat the pure one after a window of sampled weights (as described)
    bucket      how much the fresh loss fell in windows that kept a bucket of samples, by ridge regression

    B  rows    H  width of the last hidden state    Z  width of what the network sees of a sample
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.batch import Batch
from models.training.loop import TrainConfig, autocast, evaluating, output_losses, task_loss
from models.training.optimisers import Nested, coalesced

SLOTS = 256
BUCKETS = 4096
SOLVED = 1024
"""Keys of what is shown of samples whose part in their weight is solved for: sources first, then codes, hashed."""
ANY_SOURCE = -1
_SOURCES = 64
_GROUPS = ("item", "user", "context", "provenance")
_FIELD_STRIDE = 1_000_003
_STEP_LENGTH = 1e-2
_STATISTICS_MOMENTUM = 0.98


@runtime_checkable
class ShowsHidden(Protocol):
    """A model that can say what its last layer reads: the cheap form of influence needs it."""

    def hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Last hidden state (B, H) and output (B,), where output is linear in the state."""


@dataclass(frozen=True)
class Traits:
    """What the flow network sees of samples: all of a batch but its histories and ids, and where rows came from.

    Shapes:
        domain: (B,) long    label: (B,)
        codes:  item features, user features, context and provenance, each (B, fields) long
        scores: (B, 2) outputs of the mixed and the pure tower, or zeros where they are not shown
    """

    domain: Tensor
    codes: tuple[Tensor, ...]
    label: Tensor
    scores: Tensor

    @classmethod
    def of(cls, batch: Batch, scores: Tensor | None = None, provenance: Tensor | None = None) -> Traits:
        unknown = batch.context[:, :0]
        codes = (batch.item_features, batch.user_features, batch.context, unknown if provenance is None else provenance)
        shown = batch.label.new_zeros(len(batch), 2) if scores is None else scores.detach().float()
        return cls(batch.domain, codes, batch.label, shown)

    def rows(self, index: Tensor) -> Traits:
        codes = tuple(group[index] for group in self.codes)
        return Traits(self.domain[index], codes, self.label[index], self.scores[index])

    def keys(self) -> Tensor:
        """Keys of each row, (B, 1 + 2 fields) long: its source, and each of its codes in that source and in any."""
        columns = [self.domain % _SOURCES]
        for source in (self.domain, torch.full_like(self.domain, ANY_SOURCE)):
            field = 0
            for group in self.codes:
                for at in range(group.shape[1]):
                    mixed = ((source + 1) * 8191 + field) * 1_000_003 + group[:, at]
                    columns.append(_SOURCES + mixed * 2_654_435_761 % 2**32 % (SOLVED - _SOURCES))
                    field += 1
        return torch.stack(columns, 1)

    def names(self) -> dict[int, tuple[int, str, int, int]]:
        """What stands behind the keys of these rows: source, group of fields ("source" for itself), field, code."""
        keys = self.keys().cpu()
        columns = [(self.domain, "source", 0, torch.zeros_like(self.domain))]
        for source in (self.domain, torch.full_like(self.domain, ANY_SOURCE)):
            for name, group in zip(_GROUPS, self.codes, strict=True):
                columns += [(source, name, at, group[:, at]) for at in range(group.shape[1])]
        found: dict[int, tuple[int, str, int, int]] = {}
        for column, (source, name, at, code) in enumerate(columns):
            rows = set(zip(keys[:, column].tolist(), source.tolist(), code.tolist(), strict=True))
            found |= {key: (number, name, at, value) for key, number, value in rows}
        return found

    def state(self) -> Nested:
        return {"domain": self.domain, "codes": list(self.codes), "label": self.label, "scores": self.scores}

    @classmethod
    def from_state(cls, state: Nested) -> Traits:
        return cls(state["domain"], tuple(state["codes"]), state["label"], state["scores"])


class InformationFlow(nn.Module):
    """w = w_max sigmoid(u), with u = MLP of a sample's domain, feature codes, label and the towers' scores.

    Codes of all fields share one hashed table; code 0 is a missing field, whose vector is learned like the others. The
    label may be seen since weights serve training alone. The bound on w keeps it from growing to please its own loss.
    ``solved`` (SOLVED,) is a linear part by keys that is not searched for but solved (``influence.py``).
    """

    solved: Tensor

    def __init__(self, width: int = 8, hidden: int = 32, largest: float = 1.0, start: float = 0.8) -> None:
        super().__init__()
        self.largest = largest
        self.domain = nn.Embedding(SLOTS, width)
        self.codes = nn.Embedding(BUCKETS, width)
        nn.init.normal_(self.domain.weight, std=0.1)
        nn.init.normal_(self.codes.weight, std=0.01)
        last = nn.Linear(hidden, 1)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, torch.logit(torch.tensor(start)).item())
        self.score = nn.Sequential(nn.Linear((1 + len(_GROUPS)) * width + 3, hidden), nn.ReLU(), last)
        self.log_sigma = nn.Parameter(torch.zeros(()))
        self.register_buffer("solved", torch.zeros(SOLVED))

    def forward(self, traits: Traits) -> Tensor:
        """u, (B,): the weight before its sigmoid."""
        seen = [self.domain(traits.domain % SLOTS)]
        offset = 0
        for group in traits.codes:
            field = torch.arange(group.shape[1], device=group.device) + offset
            offset += group.shape[1]
            rows = (group * 31 + field * _FIELD_STRIDE) % BUCKETS
            seen.append(self.codes(rows).sum(1))
        searched = self.score(torch.cat([*seen, traits.label[:, None], traits.scores], 1)).squeeze(-1)
        return searched + self.solved[traits.keys()].sum(1)

    def weight(self, traits: Traits) -> Tensor:
        """w, (B,)."""
        return self.largest * torch.sigmoid(self(traits))

    def policy_loss(self, traits: Traits, action: Tensor, reward: float, entropy: float, target_mean: float) -> Tensor:
        """-R mean log N(a; u, sigma^2) - entropy log sigma + (mean w - rho)^2 / 100 (REINFORCE)."""
        u = self(traits)
        log_probability = -((action - u) ** 2) / (2 * torch.exp(2 * self.log_sigma)) - self.log_sigma
        pull = (torch.sigmoid(u).mean() - target_mean) ** 2
        return -reward * log_probability.mean() - entropy * self.log_sigma + 0.01 * pull


class Influence:
    """Estimates <gradient of a source row's loss, gradient of the fresh target loss> for every row of a source batch.

    Positive means that a step on the row lowers the target's loss. Biases are left out: the base rates of two domains
    differ, and their gradient would drown all else. With ``hidden`` only the last layer is looked at and states are
    centred; other models are moved along the fresh gradient v and back: [l(theta + e v) - l(theta - e v)] / 2e.
    """

    def __init__(self, model: nn.Module, trained: dict[str, nn.Parameter], config: TrainConfig) -> None:
        self.model, self.config = model, config
        self.parameters = {name: p for name, p in trained.items() if p.dim() > 1}
        self.by_layer = isinstance(model, ShowsHidden)
        self.direction: Tensor | None = None
        self.gradients: dict[str, Tensor] = {}

    def look_at(self, fresh: Batch, momentum: float) -> None:
        """Take the direction in which fresh target rows want the model to go."""
        with evaluating(self.model):
            if self.by_layer:
                state, pull = self._layer(fresh)
                new = (pull[:, None] * state).mean(0)
                self.direction = new if self.direction is None else torch.lerp(new, self.direction, momentum)
                return
            with torch.enable_grad(), autocast(fresh.label.device, self.config.bf16):
                loss = task_loss(self.model(fresh), fresh, self.config.task)
            found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
        both = zip(self.parameters, found, strict=True)
        before, self.gradients = self.gradients, {}
        for name, gradient in both:
            if gradient is None:
                continue
            if gradient.is_sparse:  # rows differ from batch to batch: only the last one's are kept
                self.gradients[name] = coalesced(gradient)
            else:
                self.gradients[name] = torch.lerp(gradient, before[name], momentum) if name in before else gradient

    @torch.no_grad()
    def of(self, source: Batch) -> Tensor | None:
        """Influence of each row, (B,); None before anything fresh was seen."""
        with evaluating(self.model):
            if self.by_layer:
                if self.direction is None:
                    return None
                state, pull = self._layer(source)
                return pull * (state @ self.direction)
            if not self.gradients:
                return None
            values = [g._values() if g.is_sparse else g for g in self.gradients.values()]
            norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(v) for v in values]))
            step = _STEP_LENGTH / max(float(norm), 1e-12)
            kept = self._moved(step)
            above = self._losses(source)
            self._put_back(kept)
            kept = self._moved(-step)
            below = self._losses(source)
            self._put_back(kept)
            return (above - below) / (2 * step)

    @torch.no_grad()
    def _layer(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Centred last hidden states (B, H) and how the loss changes with the output, (B,)."""
        assert isinstance(self.model, ShowsHidden)
        with autocast(batch.label.device, self.config.bf16):
            state, output = self.model.hidden(batch)
        state, output = state.float(), output.float()
        if self.config.task == "rating":
            return state - state.mean(0), 2 * (output - batch.label)
        return state - state.mean(0), torch.sigmoid(output) - batch.label

    def _losses(self, batch: Batch) -> Tensor:
        with autocast(batch.label.device, self.config.bf16):
            return output_losses(self.model(batch), batch.label, self.config.task)

    def _moved(self, step: float) -> dict[str, Tensor]:
        """Move the weights and return what stood there, so that putting back restores every bit."""
        kept = {}
        for name, gradient in self.gradients.items():
            parameter = self.parameters[name]
            if gradient.is_sparse:
                rows = gradient._indices()[0]
                kept[name] = parameter.index_select(0, rows)
                parameter.index_add_(0, rows, gradient._values(), alpha=step)
            else:
                kept[name] = parameter.detach().clone()
                parameter.add_(gradient, alpha=step)
        return kept

    def _put_back(self, kept: dict[str, Tensor]) -> None:
        for name, before in kept.items():
            gradient, parameter = self.gradients[name], self.parameters[name]
            if gradient.is_sparse:
                parameter.index_copy_(0, gradient._indices()[0], before)
            else:
                parameter.copy_(before)

    def state_dict(self) -> Nested:
        packed: Nested = {}
        for name, g in self.gradients.items():
            packed[name] = {"ids": g._indices()[0], "rows": g._values()} if g.is_sparse else {"dense": g}
        return {"direction": self.direction, "gradients": packed}

    def load_state_dict(self, state: Nested) -> None:
        self.direction, self.gradients = state["direction"], {}
        for name, held in state["gradients"].items():
            shape = self.parameters[name].shape
            self.gradients[name] = (
                held["dense"]
                if "dense" in held
                else torch.sparse_coo_tensor(
                    held["ids"][None], held["rows"], shape, is_coalesced=True, check_invariants=False
                )
            )


class Moments:
    """Running mean and spread of influences, per source and over all, in units that change slowly."""

    def __init__(self) -> None:
        self.square = 0.0
        self.seen = 0.0
        self.target = [0.0, 0.0]  # influence of fresh target rows, in spreads: fading sum and its weight
        self.sources: dict[int, list[float]] = {}  # recent mean influence; then batches, sum and square sum of worth

    def add(self, source: int, influence: Tensor, worth: Tensor) -> None:
        self._widen(influence)
        own = self.sources.setdefault(source, [float(influence.mean()) / self.scale(), 0.0, 0.0, 0.0])
        mean = float(worth.mean())
        own[0] = 0.9 * own[0] + 0.1 * float(influence.mean()) / self.scale()
        own[1:] = [own[1] + 1, own[2] + mean, own[3] + mean**2]

    def add_target(self, influence: Tensor) -> None:
        self._widen(influence)
        keep = _STATISTICS_MOMENTUM
        self.target[0] = keep * self.target[0] + (1 - keep) * float(influence.mean()) / self.scale()
        self.target[1] = keep * self.target[1] + (1 - keep)

    def _widen(self, influence: Tensor) -> None:
        keep = _STATISTICS_MOMENTUM
        self.square = keep * self.square + (1 - keep) * float(influence.square().mean())
        self.seen = keep * self.seen + (1 - keep)

    def scale(self) -> float:
        """Spread of row influences."""
        return max((self.square / max(self.seen, 1e-12)) ** 0.5, 1e-12)

    def worth(self, influence: Tensor, centre: str) -> Tensor:
        """Influence in spreads, clipped, less what it is compared with."""
        scale = self.scale() if self.seen else max(float(influence.square().mean()) ** 0.5, 1e-12)
        level = 0.0
        if centre == "target" and self.target[1]:
            level = min(0.0, self.target[0] / self.target[1])
        elif centre == "mean" and len(self.sources) > 1:
            level = sum(own[0] for own in self.sources.values()) / len(self.sources)
        return (influence / scale).clamp(-3, 3) - level

    def evidence(self, source: int) -> tuple[float, float]:
        """Mean worth of a source and its t value over batches; zeros where there is none."""
        _, n, total, squares = self.sources.get(source, [0.0, 0.0, 0.0, 0.0])
        if n < 2:
            return 0.0, 0.0
        mean = total / n
        spread = max(squares / n - mean**2, 1e-12) ** 0.5
        return mean, mean / (spread / n**0.5)

    def state_dict(self) -> Nested:
        sources = {str(k): list(v) for k, v in self.sources.items()}
        return {"square": self.square, "seen": self.seen, "target": list(self.target), "sources": sources}

    def load_state_dict(self, state: Nested) -> None:
        self.square, self.seen, self.target = state["square"], state["seen"], list(state["target"])
        self.sources = {int(k): list(v) for k, v in state["sources"].items()}


class BucketBandit:
    """Which buckets of source samples lower the fresh loss, from windows that each keep a random half of them.

    Ridge regression of the loss's fall over a window on the buckets' share of the window, with slow forgetting.
    """

    def __init__(self, buckets: int = 64, ridge: float = 1.0, forget: float = 0.999) -> None:
        self.buckets, self.ridge, self.forget = buckets, ridge, forget
        self.gram, self.cross = torch.zeros(buckets, buckets), torch.zeros(buckets)
        self.falls = [0.0, 0.0, 0.0]  # count, sum, square sum
        self.kept = torch.ones(buckets)

    def bucket(self, traits: Traits) -> Tensor:
        """(B,) long: by domain and by where rows came from; where nobody knows, by the first feature of items."""
        shown = [group[:, 0] for group in (traits.codes[-1], traits.codes[0]) if group.shape[1]]
        code = shown[0] if shown else torch.zeros_like(traits.domain)
        return (traits.domain + code * 7919) % self.buckets

    def new_window(self) -> None:
        self.kept = (torch.rand(self.buckets) < 0.5).float()

    def close_window(self, fall: float) -> None:
        """The fresh loss fell by ``fall`` in a window that kept ``kept``."""
        count, total, squares = self.falls
        self.falls = [count + 1, total + fall, squares + fall**2]
        if count < 2:
            return
        mean = total / count
        spread = max(squares / count - mean**2, 1e-12) ** 0.5
        mask = self.kept - 0.5
        self.gram = self.forget * self.gram + torch.outer(mask, mask)
        self.cross = self.forget * self.cross + mask * ((fall - mean) / spread)

    def value(self) -> Tensor:
        """Estimated worth of each bucket, (buckets,), in standard errors of the estimate."""
        gram = self.gram + self.ridge * torch.eye(self.buckets)
        inverse = torch.linalg.inv(gram)
        return (inverse @ self.cross) / inverse.diagonal().sqrt()

    def state_dict(self) -> Nested:
        return {"gram": self.gram, "cross": self.cross, "falls": self.falls, "kept": self.kept}

    def load_state_dict(self, state: Nested) -> None:
        self.gram, self.cross, self.kept = (state[name].cpu() for name in ("gram", "cross", "kept"))
        self.falls = list(state["falls"])


def flow_optimiser(flow: InformationFlow, rate: float) -> torch.optim.Optimizer:
    """The flow network's own optimiser: it never shares one with the towers."""
    return torch.optim.Adam(flow.parameters(), rate)


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> list[Any]:
    """State of each parameter in order, as nested tensors."""
    return [dict(optimiser.state.get(p, {})) for group in optimiser.param_groups for p in group["params"]]


def load_optimiser_tensors(optimiser: torch.optim.Optimizer, state: list[Any]) -> None:
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    for p, own in zip(parameters, state, strict=True):
        optimiser.state.pop(p, None)
        if own:
            optimiser.state[p] = {key: value.clone() for key, value in own.items()}


def regression_loss(u: Tensor, worth: Tensor) -> Tensor:
    """The flow network learns the bandit's verdict: w near sigmoid(worth)."""
    return F.binary_cross_entropy_with_logits(u, torch.sigmoid(worth))

"""CCTL's weights from influence at the model's present point: what a step on a sample now does for the target."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.cctl.config import TransferConfig
from models.cctl.information_flow import InformationFlow, Traits
from models.cctl.learners import WeightLearner
from models.training.loop import TrainConfig, autocast, evaluating, output_losses, task_loss
from models.training.optimisers import Nested, coalesced

_STEP_LENGTH = 1e-2
_STATISTICS_MOMENTUM = 0.98


@runtime_checkable
class ShowsHidden(Protocol):
    """A model that can say what its last layer reads: the cheap form of influence needs it."""

    def hidden(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Last hidden state (B, H) and output (B,), where output is linear in the state."""


class Influence:
    """Estimates g_s = <grad l_s(theta), grad L_H(theta)> for every row of a source batch (TracIn, Pruthi et al. 2020).

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
            with torch.enable_grad(), autocast(fresh.label.device, bf16=self.config.bf16):
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
            values = [g.values() if g.is_sparse else g for g in self.gradients.values()]
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
        with autocast(batch.label.device, bf16=self.config.bf16):
            state, output = self.model.hidden(batch)
        state, output = state.float(), output.float()
        if self.config.task == "rating":
            return state - state.mean(0), 2 * (output - batch.label)
        return state - state.mean(0), torch.sigmoid(output) - batch.label

    def _losses(self, batch: Batch) -> Tensor:
        with autocast(batch.label.device, bf16=self.config.bf16):
            return output_losses(self.model(batch), batch.label, self.config.task)

    def _moved(self, step: float) -> dict[str, Tensor]:
        """Move the weights and return what stood there, so that putting back restores every bit."""
        kept = {}
        for name, gradient in self.gradients.items():
            parameter = self.parameters[name]
            if gradient.is_sparse:
                rows = gradient.indices()[0]
                kept[name] = parameter.index_select(0, rows)
                parameter.index_add_(0, rows, gradient.values(), alpha=step)
            else:
                kept[name] = parameter.detach().clone()
                parameter.add_(gradient, alpha=step)
        return kept

    def _put_back(self, kept: dict[str, Tensor]) -> None:
        for name, before in kept.items():
            gradient, parameter = self.gradients[name], self.parameters[name]
            if gradient.is_sparse:
                parameter.index_copy_(0, gradient.indices()[0], before)
            else:
                parameter.copy_(before)

    def state_dict(self) -> Nested:
        packed: Nested = {}
        for name, g in self.gradients.items():
            packed[name] = {"ids": g.indices()[0], "rows": g.values()} if g.is_sparse else {"dense": g}
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


class InfluenceStatistics:
    """Running mean and spread of influences, per source and over all, in units that change slowly."""

    def __init__(self) -> None:
        self.square = 0.0
        self.seen = 0.0
        self.target = [0.0, 0.0]  # influence of fresh target rows, in spreads: fading sum and its weight
        self.sources: dict[int, list[float]] = {}  # recent mean influence; then batches, sum and square sum of values

    def add(self, source: int, influence: Tensor, value: Tensor) -> None:
        self._widen(influence)
        own = self.sources.setdefault(source, [float(influence.mean()) / self.scale(), 0.0, 0.0, 0.0])
        mean = float(value.mean())
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

    def value(self, influence: Tensor, centre: str) -> Tensor:
        """Influence in spreads, clipped, less what it is compared with."""
        scale = self.scale() if self.seen else max(float(influence.square().mean()) ** 0.5, 1e-12)
        level = 0.0
        if centre == "target" and self.target[1]:
            level = min(0.0, self.target[0] / self.target[1])
        elif centre == "mean" and len(self.sources) > 1:
            level = sum(own[0] for own in self.sources.values()) / len(self.sources)
        return (influence / scale).clamp(-3, 3) - level

    def evidence(self, source: int) -> tuple[float, float]:
        """Mean value of a source's rows and its t value over batches; zeros where there are too few."""
        _, n, total, squares = self.sources[source]
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


class PointInfluenceLearner(WeightLearner):
    """Regresses the weight's logit on influence: u = logit(start) + sensitivity x expected value of such a sample.

    Pushing w itself up or down instead lets every weight drift to 0 or 1 where there is no evidence either way.
    """

    def __init__(
        self,
        config: TransferConfig,
        flow: InformationFlow,
        model: nn.Module,
        trained: dict[str, nn.Parameter],
        training: TrainConfig,
    ) -> None:
        super().__init__(config, flow)
        self.influence, self.statistics = Influence(model, trained, training), InfluenceStatistics()

    def look_at(self, fresh: Batch) -> None:
        if self.config.centre == "target":
            own = self.influence.of(fresh)
            if own is not None:
                self.statistics.add_target(own)
        self.influence.look_at(fresh, self.config.direction_momentum)

    def learn(self, source: Batch, traits: Traits, *, warm: bool) -> None:
        influence = self.influence.of(source)
        if influence is None:
            return
        value = self.statistics.value(influence, self.config.centre)
        for domain in torch.unique(source.domain).tolist():
            self.statistics.add(domain, influence[source.domain == domain], value[source.domain == domain])
        if warm:
            neutral = math.log(self.config.start / (1 - self.config.start))
            self.descend(((self.flow(traits) - neutral) / self.config.sensitivity - value).square().mean())

    def evidence(self) -> dict[int, tuple[float, float]]:
        return {source: self.statistics.evidence(source) for source in self.statistics.sources}

    def state_dict(self) -> Nested:
        own = {"influence": self.influence.state_dict(), "statistics": self.statistics.state_dict()}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Nested) -> None:
        super().load_state_dict(state)
        self.influence.load_state_dict(state["influence"])
        self.statistics.load_state_dict(state["statistics"])

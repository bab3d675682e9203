"""CCTL's symmetric companion network (SCN): towers beside the model, and what the sources gave it.

The model itself is the mixed tower, of weights theta_m; the pure tower, of the same form and start, has theta_p:

    L_pure = (1/n_t) sum_t l(y_t, f(x_t; theta_p))
    L_mix  = (1/n_t) sum_t l(y_t, f(x_t; theta_m)) + (lambda_s/n_s) sum_s w_s l(y_s, f(x_s; theta_m))
    G      = L_H(theta_p) - L_H(theta_m)

L_H is the loss on fresh target rows, taken before the model trains on them. Every k steps theta_p is set to theta_m,
so that G, positive where the sources helped, is what they gave since then.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.cctl.config import TransferConfig
from models.cctl.window import Window
from models.training.loop import TrainConfig, TrainingStep, autocast, evaluating, objective, task_loss
from models.training.optimisers import Nested, Optimisers

_GAP_MOMENTUM = 0.7


class Companion:
    """A tower of the same form as the model, trained on target rows alone."""

    def __init__(self, model: nn.Module, optimisers: Optimisers, config: TrainConfig) -> None:
        self.tower = copy.deepcopy(model)
        self.optimisers, self.config = optimisers.like(self.tower), config

    def learn(self, target: Batch) -> None:
        """One step down L_pure."""
        self.optimisers.zero_grad()
        objective(self.tower, target, self.config)[1].backward()
        if self.config.clip:
            self.optimisers.clip(self.config.clip)
        self.optimisers.step()

    @torch.no_grad()
    def become(self, model: nn.Module, optimisers: Optimisers) -> None:
        """Take the model's weights, buffers and optimiser state."""
        theirs = dict(model.named_parameters())
        for name, own in self.optimisers.named.items():
            own.copy_(theirs[name])
        buffers = dict(model.named_buffers())
        for name, buffer in self.tower.named_buffers():
            buffer.copy_(buffers[name])
        self.optimisers.load_state_dict(optimisers.state_dict())

    def weights(self) -> dict[str, Tensor]:
        floating = {n: b for n, b in self.tower.named_buffers() if b.is_floating_point() or b.numel() == 1}
        return {**self.optimisers.named, **floating}

    @torch.no_grad()
    def load_weights(self, weights: dict[str, Tensor]) -> None:
        own = {**dict(self.tower.named_buffers()), **self.optimisers.named}
        for name, value in weights.items():
            own[name].copy_(value)

    def state_dict(self) -> Nested:
        return {"weights": self.weights(), "optimisers": self.optimisers.state_dict()}

    def load_state_dict(self, state: Nested) -> None:
        self.load_weights(state["weights"])
        self.optimisers.load_state_dict(state["optimisers"])


class GainObserver:
    """Measures G in every window, and says whether the rows that it is measured on can be trusted.

    They cannot where nothing is fresh: from the second epoch on without ``held_out``, and once the model has overfit
    its target.

    Args:
        held_out: target batches that are never trained on.
    """

    def __init__(
        self,
        config: TransferConfig,
        model: nn.Module,
        optimisers: Optimisers,
        training: TrainConfig,
        held_out: Sequence[Batch],
    ) -> None:
        self.config, self.model, self.optimisers, self.training = config, model, optimisers, training
        self.held_out = held_out
        self.pure = Companion(model, optimisers, training) if config.companion else None
        self.control = Companion(model, optimisers, training) if config.control else None
        self.windows: list[dict[str, Any]] = []
        self.fresh_loss, self.seen_loss = 0.0, 0.0
        self.looks, self.overfit = 0, False

    def is_fresh(self, step: TrainingStep) -> bool:
        """Whether target rows have not been trained on yet."""
        return step.epoch == 0 or not self.config.guarded

    def is_trusted(self, step: TrainingStep) -> bool:
        """Whether what fresh rows say may move weights."""
        return not self.config.guarded or (not self.overfit and (self.is_fresh(step) or bool(self.held_out)))

    def fresh_rows(self, target: Batch, step: TrainingStep) -> Batch:
        """These rows, which the model is about to train on, or held-out ones where they are no longer fresh."""
        if self.is_fresh(step) or not self.held_out:
            return target
        self.looks += 1
        return self.held_out[(self.looks - 1) % len(self.held_out)]

    def observe(self, fresh: Batch, window: Window) -> None:
        """Note L_H of the model, and how far the other towers' losses lie above it."""
        mixed = self.loss(fresh)
        window.fresh.append(mixed)
        if self.pure is not None:
            window.gains.append(self.loss(fresh, self.pure.tower) - mixed)
        if self.control is not None:
            window.control_gains.append(self.loss(fresh, self.control.tower) - mixed)

    def learn(self, target: Batch) -> None:
        """Train the towers on target rows that the model has trained on."""
        for tower in (self.pure, self.control):
            if tower is not None:
                tower.learn(target)

    def compare(self, window: Window, target: Batch) -> None:
        """Bring the mean losses of fresh rows and of rows just trained on up to date."""
        seen = self.loss(target)
        fresh = sum(window.fresh) / max(len(window.fresh), 1)
        keep = _GAP_MOMENTUM if self.windows else 0.0
        self.fresh_loss = keep * self.fresh_loss + (1 - keep) * fresh
        self.seen_loss = keep * self.seen_loss + (1 - keep) * seen

    def close(self, window: Window, step: TrainingStep, *, judges_rows: bool) -> None:
        """Set the pure tower to the model, look whether the model has overfit, and record the window.

        Args:
            judges_rows: whether weights come of these rows at all.
        """
        if self.pure is not None:
            self.pure.become(self.model, self.optimisers)
        gap = (self.fresh_loss - self.seen_loss) / max(self.fresh_loss, 1e-12)
        self.overfit = self.config.guarded and gap > self.config.overfit_gap
        stale = self.config.guarded and judges_rows and not self.is_fresh(step) and not self.held_out
        self.windows.append(
            {
                "step": step.number + 1,
                "gain": _mean(window.gains),
                "control_gain": _mean(window.control_gains),
                "fresh_loss": self.fresh_loss,
                "seen_loss": self.seen_loss,
                "frozen": self.overfit or stale,
            }
        )

    @torch.no_grad()
    def loss(self, batch: Batch, model: nn.Module | None = None) -> float:
        """Of a tower, by default the model."""
        tower = self.model if model is None else model
        with evaluating(tower), autocast(batch.label.device, bf16=self.training.bf16):
            return float(task_loss(tower(batch), batch, self.training.task))

    @torch.no_grad()
    def outputs(self, batch: Batch) -> Tensor:
        """[p_m, p_p], (B, 2): outputs of the mixed and the pure tower."""
        outputs = []
        for tower in (self.model, self.pure.tower if self.pure is not None else self.model):
            with evaluating(tower), autocast(batch.label.device, bf16=self.training.bf16):
                outputs.append(tower(batch).float())
        return torch.stack(outputs, 1)

    _PLAIN = ("windows", "fresh_loss", "seen_loss", "looks", "overfit")

    def state_dict(self) -> Nested:
        return {
            "plain": {name: getattr(self, name) for name in self._PLAIN},
            "pure": None if self.pure is None else self.pure.state_dict(),
            "control": None if self.control is None else self.control.state_dict(),
        }

    def load_state_dict(self, state: Nested) -> None:
        for name, value in state["plain"].items():
            setattr(self, name, value)
        for tower, saved in ((self.pure, state["pure"]), (self.control, state["control"])):
            if tower is not None:
                tower.load_state_dict(saved)


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None

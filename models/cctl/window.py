"""What CCTL notes of a window, the steps between two settings of its companion."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor

from models.cctl.information_flow import Traits
from models.training.optimisers import Nested


@dataclass
class Window:
    """Weights of source rows by source, gains and losses on fresh target rows, and the actions that a gain rewards."""

    weights: dict[int, list[Tensor]] = field(default_factory=dict)
    gains: list[float] = field(default_factory=list)
    control_gains: list[float] = field(default_factory=list)
    actions: list[tuple[Traits, Tensor]] = field(default_factory=list)
    fresh: list[float] = field(default_factory=list)

    def note(self, domain: Tensor, weight: Tensor) -> None:
        """Source rows of ``domain``, (B,), weighed ``weight``, (B,)."""
        for source in torch.unique(domain).tolist():
            self.weights.setdefault(source, []).append(weight[domain == source].detach())

    def percentiles(self, step: int) -> list[dict[str, Any]]:
        """A row for each source: step, source, rows, mean, p10, p50, p90."""
        rows = []
        for source, parts in sorted(self.weights.items()):
            w = torch.cat(parts).float()
            low, middle, high = torch.quantile(w, torch.tensor([0.1, 0.5, 0.9], device=w.device)).tolist()
            row = {"step": step, "source": source, "rows": len(w), "mean": float(w.mean())}
            rows.append({**row, "p10": low, "p50": middle, "p90": high})
        return rows

    def state_dict(self) -> Nested:
        return {
            "weights": {str(source): torch.cat(parts) for source, parts in self.weights.items()},
            "gains": self.gains,
            "control_gains": self.control_gains,
            "fresh": self.fresh,
            "actions": [{"traits": traits.state(), "action": action} for traits, action in self.actions],
        }

    @classmethod
    def from_state(cls, state: Nested) -> Self:
        return cls(
            {int(source): [values] for source, values in state["weights"].items()},
            state["gains"],
            state["control_gains"],
            [(Traits.from_state(held["traits"]), held["action"]) for held in state["actions"]],
            state["fresh"],
        )

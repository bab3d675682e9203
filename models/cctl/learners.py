"""How CCTL's information flow network learns: what all ways share, and the policy gradient.

    uniform     not at all: every weight is 1, to compare with
    reinforce   policy gradient, by how much the mixed tower beat the pure one after a window of sampled weights
    influence   by how much steps on a sample and on target rows help each other, along the whole path of a tower that
                learns from the target alone (``influence.py``)

``reinforce`` is the paper's own, ``influence`` is ours.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.batch import Batch
from models.cctl.config import Part, TransferConfig
from models.cctl.information_flow import InformationFlow, Traits
from models.cctl.window import Window
from models.training.optimisers import Nested


class WeightLearner:
    """Learns nothing by itself; the other learners override what they do otherwise."""

    ahead = False
    """Whether it judges sources before the model's first step, and needs no fresh rows afterwards."""

    def __init__(self, config: TransferConfig, flow: InformationFlow) -> None:
        self.config, self.flow = config, flow

    def look_at(self, fresh: Batch) -> None:
        """Take in fresh target rows, before the model trains on them."""

    def learn_target(self, target: Batch) -> None:
        """Take in target rows that the model has trained on."""

    def learn(self, source: Batch, traits: Traits) -> None:
        """Take in source rows before the model trains on them."""

    @torch.no_grad()
    def weights(self, traits: Traits, window: Window) -> Tensor:
        """w of rows, (B,)."""
        weight = self.flow.weight(traits)
        window.note(traits.domain, weight)
        return weight

    def try_weights(self, traits: Traits, window: Window) -> Tensor:
        """w of rows, (B,), while the network may learn: where that is by trial, those of the trial."""
        return self.weights(traits, window)

    def close_window(self, window: Window, *, learning: bool) -> None:
        """A window is over."""

    def evidence(self) -> dict[int, tuple[float, float]]:
        """Mean value of each source's rows and its t value."""
        return {}

    def parts(self) -> tuple[Part, ...]:
        """Parts of sources of which enough is known, the most harmful first."""
        return ()

    def certainty(self) -> float | None:
        """How surely the target's own rows agree with what it taught (t value), where sources are judged by it."""
        return None

    def state_dict(self) -> Nested:
        return {"flow": self.flow.state_dict()}

    def load_state_dict(self, state: Nested) -> None:
        self.flow.load_state_dict(state["flow"])


class PolicyGradient(WeightLearner):
    """REINFORCE: actions a ~ N(u, sigma^2), weights w_max sigmoid(a), and one reward for all actions of a window."""

    def __init__(self, config: TransferConfig, flow: InformationFlow) -> None:
        super().__init__(config, flow)
        # The flow network never shares an optimiser with the towers.
        self.optimiser = torch.optim.Adam(flow.parameters(), config.learning_rate)
        self.reward_mean, self.reward_square, self.rewards = 0.0, 0.0, 0

    def try_weights(self, traits: Traits, window: Window) -> Tensor:
        with torch.no_grad():
            u = self.flow(traits)
        window.note(traits.domain, self.config.largest * torch.sigmoid(u))
        action = u + torch.exp(self.flow.log_sigma.detach()) * torch.randn_like(u)
        window.actions.append((traits, action))
        return self.config.largest * torch.sigmoid(action)

    def close_window(self, window: Window, *, learning: bool) -> None:
        """R = (G - mean G) / deviation, from the running mean and square of G; clipped to three deviations."""
        if not learning or not window.gains:
            return
        gain = window.gains[-1]
        self.rewards += 1
        keep = min(0.9, 1 - 1 / self.rewards)
        reward = (gain - self.reward_mean) / max((self.reward_square - self.reward_mean**2), 1e-12) ** 0.5
        self.reward_mean = keep * self.reward_mean + (1 - keep) * gain
        self.reward_square = keep * self.reward_square + (1 - keep) * gain**2
        if self.rewards > 2 and window.actions:
            reward = max(-3.0, min(3.0, reward))
            losses = [
                self.flow.policy_loss(traits, action, reward, self.config.entropy, self.config.policy_mean)
                for traits, action in window.actions
            ]
            self.optimiser.zero_grad(set_to_none=True)
            torch.stack(losses).mean().backward()
            self.optimiser.step()

    def state_dict(self) -> Nested:
        rewards = {"mean": self.reward_mean, "square": self.reward_square, "count": self.rewards}
        moments = [dict(self.optimiser.state.get(p, {})) for p in self.flow.parameters()]
        return {**super().state_dict(), "rewards": rewards, "optimiser": moments}

    def load_state_dict(self, state: Nested) -> None:
        super().load_state_dict(state)
        for p, own in zip(self.flow.parameters(), state["optimiser"], strict=True):
            self.optimiser.state.pop(p, None)
            if own:
                self.optimiser.state[p] = {key: value.clone() for key, value in own.items()}
        rewards = state["rewards"]
        self.reward_mean, self.reward_square, self.rewards = rewards["mean"], rewards["square"], rewards["count"]

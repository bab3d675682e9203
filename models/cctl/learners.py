"""How CCTL's information flow network learns: what all ways share, and two of them.

    uniform     not at all: every weight is 1, to compare with
    reinforce   policy gradient, by how much the mixed tower beat the pure one after a window of sampled weights
    bucket      a bandit over buckets of samples, by how much the fresh loss fell in windows that kept a bucket
    influence   by how much steps on a sample and on target rows help each other: along the whole path of a tower that
                learns from the target alone (``influence.py``), or at the model's present point
                (``point_influence.py``)

``reinforce`` is the paper's own; the others are ours.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models.batch import Batch
from models.cctl.companion import GainObserver
from models.cctl.config import Part, TransferConfig
from models.cctl.information_flow import InformationFlow, Traits
from models.cctl.window import Window, batch_from, state_of
from models.training.optimisers import Nested


class WeightLearner:
    """Learns nothing by itself; the other learners override what they do otherwise."""

    ahead = False
    """Whether it judges sources before the model's first step, and needs no fresh rows afterwards."""

    def __init__(self, config: TransferConfig, flow: InformationFlow) -> None:
        self.config, self.flow = config, flow
        # The flow network never shares an optimiser with the towers.
        self.optimiser = torch.optim.Adam(flow.parameters(), config.learning_rate)

    def look_at(self, fresh: Batch) -> None:
        """Take in fresh target rows, before the model trains on them."""

    def learn_target(self, target: Batch) -> None:
        """Take in target rows that the model has trained on."""

    def learn(self, source: Batch, traits: Traits, *, warm: bool) -> None:
        """Take in source rows before the model trains on them; the network itself learns once ``warm``."""

    @torch.no_grad()
    def weights(self, traits: Traits, window: Window) -> Tensor:
        """w of rows, (B,)."""
        weight = self.flow.weight(traits)
        window.note(traits.domain, weight)
        return weight

    def try_weights(self, traits: Traits, window: Window) -> Tensor:
        """w of rows, (B,), while the network may learn: where that is by trial, those of the trial."""
        return self.weights(traits, window)

    def close_window(self, window: Window, target: Batch, *, learning: bool) -> None:
        """A window is over; ``target`` are rows that the model has just trained on."""

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
        groups = self.optimiser.param_groups
        state = [dict(self.optimiser.state.get(p, {})) for group in groups for p in group["params"]]
        return {"flow": self.flow.state_dict(), "optimiser": state}

    def load_state_dict(self, state: Nested) -> None:
        self.flow.load_state_dict(state["flow"])
        parameters = [p for group in self.optimiser.param_groups for p in group["params"]]
        for p, own in zip(parameters, state["optimiser"], strict=True):
            self.optimiser.state.pop(p, None)
            if own:
                self.optimiser.state[p] = {key: value.clone() for key, value in own.items()}

    def descend(self, loss: Tensor) -> None:
        """One step of the flow network."""
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()


class PolicyGradient(WeightLearner):
    """REINFORCE: actions a ~ N(u, sigma^2), weights w_max sigmoid(a), and one reward for all actions of a window."""

    def __init__(self, config: TransferConfig, flow: InformationFlow) -> None:
        super().__init__(config, flow)
        self.reward_mean, self.reward_square, self.rewards = 0.0, 0.0, 0

    def try_weights(self, traits: Traits, window: Window) -> Tensor:
        with torch.no_grad():
            u = self.flow(traits)
        window.note(traits.domain, self.config.largest * torch.sigmoid(u))
        action = u + torch.exp(self.flow.log_sigma.detach()) * torch.randn_like(u)
        window.actions.append((traits, action))
        return self.config.largest * torch.sigmoid(action)

    def close_window(self, window: Window, target: Batch, *, learning: bool) -> None:
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
            self.descend(torch.stack(losses).mean())

    def state_dict(self) -> Nested:
        rewards = {"mean": self.reward_mean, "square": self.reward_square, "count": self.rewards}
        return {**super().state_dict(), "rewards": rewards}

    def load_state_dict(self, state: Nested) -> None:
        super().load_state_dict(state)
        rewards = state["rewards"]
        self.reward_mean, self.reward_square, self.rewards = rewards["mean"], rewards["square"], rewards["count"]


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
        """Estimated value of each bucket, (buckets,), in standard errors: (F^T F + lambda I)^-1 F^T y over its own."""
        gram = self.gram + self.ridge * torch.eye(self.buckets)
        inverse = torch.linalg.inv(gram)
        return (inverse @ self.cross) / inverse.diagonal().sqrt()

    def state_dict(self) -> Nested:
        return {"gram": self.gram, "cross": self.cross, "falls": self.falls, "kept": self.kept}

    def load_state_dict(self, state: Nested) -> None:
        self.gram, self.cross, self.kept = (state[name].cpu() for name in ("gram", "cross", "kept"))
        self.falls = list(state["falls"])


class BucketLearner(WeightLearner):
    """The flow network follows the bandit: w near sigmoid(value of a sample's bucket)."""

    def __init__(self, config: TransferConfig, flow: InformationFlow, observer: GainObserver) -> None:
        super().__init__(config, flow)
        self.observer, self.bandit = observer, BucketBandit()
        self.yardstick: Batch | None = None  # one batch, whose loss is taken before and after a window
        self.yardstick_loss = 0.0

    def try_weights(self, traits: Traits, window: Window) -> Tensor:
        weight = self.weights(traits, window)
        value = self.bandit.value().to(weight.device)
        bucket = self.bandit.bucket(traits)
        self.descend(F.binary_cross_entropy_with_logits(self.flow(traits), torch.sigmoid(value[bucket])))
        return self.bandit.kept.to(weight.device)[bucket] * weight.clamp(min=0.1)

    def close_window(self, window: Window, target: Batch, *, learning: bool) -> None:
        """Close the window by the fall of one batch's loss, and open the next with another batch."""
        if learning and self.yardstick is not None:
            self.bandit.close_window(self.yardstick_loss - self.observer.loss(self.yardstick))
        self.yardstick = self.observer.next_held_out() if self.observer.held_out else target
        self.yardstick_loss = self.observer.loss(self.yardstick)
        self.bandit.new_window()

    def state_dict(self) -> Nested:
        yardstick: Any = None if self.yardstick is None else state_of(self.yardstick)
        own = {"bandit": self.bandit.state_dict(), "yardstick": yardstick, "yardstick_loss": self.yardstick_loss}
        return {**super().state_dict(), **own}

    def load_state_dict(self, state: Nested) -> None:
        super().load_state_dict(state)
        self.bandit.load_state_dict(state["bandit"])
        self.yardstick = None if state["yardstick"] is None else batch_from(state["yardstick"])
        self.yardstick_loss = state["yardstick_loss"]

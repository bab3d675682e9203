"""Collaborative cross-domain transfer (CCTL): borrow from source samples what helps the target, and say what does not.

``CollaborativeTransfer`` stands beside the one training loop as its sample weigher:

    transfer = CollaborativeTransfer(TransferConfig(targets=(0,)))
    train(model, data, config=config, sample_weigher=transfer)
    transfer.report().verdicts[3].borrow        # is source 3 worth borrowing from from?

The model that the loop trains is the mixed tower. Beside it a companion of the same form learns from target rows alone;
every ``sync_every`` steps it is set to the mixed tower again, so the difference of their losses on fresh target rows is
what the sources gave in that window. The information flow network (``information_flow.py``) weighs each source
row. Target rows always weigh 1; a source batch's loss is (share / n_s) sum w l, never divided by the weights. A third
tower, the target-only tower, never sees a source; by default weights come from how far source labels agree with what
it learned of the target (``influence.py``). Give it the target's rows beforehand, `target_tower_from`, where there are
few of them.

Guards, since rows that are no longer fresh mislead (good sources look harmful to a network that has memorised its
target):
 - fresh rows are target rows before they are first trained on, ``held_out`` ones, or those kept from the target-only
   tower; while they do not agree with the target-only tower for certain, every weight stays at its start;
 - a target-only tower that learns ahead stays at the last pass where such rows agree almost the surest;
 - otherwise, from the second epoch on, without ``held_out``, the flow network stands still;
 - it stands still while the fresh loss exceeds the loss on rows just trained on by more than ``overfit_gap`` of itself;
 - all weights are 1 for the first ``warm_up_steps``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.cctl.config import Part, TransferConfig, TransferReport, Verdict, harms, verdicts
from models.cctl.influence import SURE_OF_TARGET, Companion, SourceValues, TargetTower
from models.cctl.information_flow import (
    ANY_SOURCE,
    BucketBandit,
    Influence,
    InformationFlow,
    Moments,
    Traits,
    flow_optimiser,
    load_optimiser_tensors,
    optimiser_tensors,
    regression_loss,
)
from models.cctl.window import Window, batch_from, state_of
from models.training.loop import BatchSource, TrainConfig, TrainingStep, autocast, evaluating, task_loss
from models.training.optimisers import Nested, Optimisers

__all__ = ["CollaborativeTransfer", "Companion", "Part", "TransferConfig", "TransferReport", "Verdict"]

Provenance = Callable[[Batch], Tensor]

_GAP_MOMENTUM = 0.7
_ROWS_OF_A_PART = 200


class CollaborativeTransfer:
    """The sample weigher of CCTL; see the module. One object serves one run of the training loop.

    Args:
        held_out: target batches that are never trained on: fresh in every epoch. Not those that choose the best epoch.
        provenance: codes of where rows came from (a partner, a log), (B, codes) long: weighing sees them, no network
            does.
    """

    def __init__(
        self, config: TransferConfig, held_out: Sequence[Batch] = (), provenance: Provenance | None = None
    ) -> None:
        self.config, self.held_out, self.provenance = config, held_out, provenance
        self.target: BatchSource | None = None
        self.sources: BatchSource | None = None
        self.judged: tuple[TargetTower | None, SourceValues, Tensor] | None = None
        self.weight_rows: list[dict[str, Any]] = []
        self.window_rows: list[dict[str, Any]] = []

    def target_tower_from(self, target: BatchSource, sources: BatchSource | None = None) -> None:
        """Rows that the target-only tower may go through before the model's first step.

        Args:
            target: rows of the targets, which it passes over as often as helps.
            sources: rows of the sources, which are then entered into the source_values at once, so that weights are
                known from the first step; else they are entered as they come.
        """
        self.target, self.sources = target, sources

    # The loop's side

    def begin(self, model: nn.Module, optimisers: Optimisers, config: TrainConfig) -> None:
        """Make the towers and the flow network beside ``model``."""
        self.model, self.optimisers, self.training = model, optimisers, config
        device = next(model.parameters()).device
        self.targets = torch.tensor(self.config.targets, device=device)
        self.held_out = [batch.to(device) for batch in self.held_out]
        self.pure = Companion(model, optimisers, config) if self.config.companion else None
        self.control = Companion(model, optimisers, config) if self.config.control else None
        by_path = self.config.mode == "influence" and self.config.influence == "path"
        sure = SURE_OF_TARGET if self.config.guarded else 0.0
        self.target_tower = TargetTower(model, optimisers, config, sure=sure) if by_path else None
        self.source_values = SourceValues(self.config.expected)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            self.flow = InformationFlow(largest=self.config.largest, start=self.config.start).to(device)
        self.flow_optimiser = flow_optimiser(self.flow, self.config.learning_rate)
        self.influence = Influence(model, optimisers.named, config)
        if self.judged is not None:
            self.target_tower, self.source_values, solved = self.judged
            self.flow.solved.copy_(solved)
        self.moments, self.bandit = Moments(), BucketBandit()
        self.window = Window()
        self.steps, self.source_batches, self.looks, self.window_due = 0, 0, 0, False
        self.yardstick: Batch | None = None  # the bandit's: one batch before and after a window
        self.yardstick_loss = 0.0
        self.reward_mean, self.reward_square, self.rewards = 0.0, 0.0, 0
        self.fresh_loss, self.seen_loss = 0.0, 0.0
        self.frozen = False

    def weigh(self, batch: Batch, moment: TrainingStep) -> Tensor | None:
        """Factors of the rows' losses. Target rows are scored by the towers before the model trains on them."""
        self._look_ahead(batch.label.device)
        is_target = torch.isin(batch.domain, self.targets)
        if bool(is_target.all()):
            self._observe(batch, moment)
            return None
        if not bool(is_target.any()):
            return self.config.share * self._weights(batch, moment)
        self._observe(batch.rows(is_target), moment)
        factor = torch.ones_like(batch.label)
        factor[~is_target] = self.config.share * self._weights(batch.rows(~is_target), moment)
        return factor

    def after_step(self, batch: Batch, moment: TrainingStep) -> None:
        """Let the companions learn from the target rows, and note when a window is over."""
        self.steps = moment.step + 1
        is_target = torch.isin(batch.domain, self.targets)
        if bool(is_target.any()):
            target = batch if bool(is_target.all()) else batch.rows(is_target)
            beside = self.target_tower if self.target is None else None
            for tower in (self.pure, self.control, beside):
                if tower is not None:
                    tower.learn(target)
            if self.window_due:
                self._close_window(target, moment)
        if (moment.step + 1) % self.config.sync_every == 0:
            self.window_due = True

    # Target rows

    def _is_fresh(self, moment: TrainingStep) -> bool:
        return moment.epoch == 0 or not self.config.guarded

    def _observe(self, target: Batch, moment: TrainingStep) -> None:
        """Losses of all towers on fresh rows, and where they want the model to go."""
        fresh = target
        if not self._is_fresh(moment) and self.held_out:
            fresh = self.held_out[self.looks % len(self.held_out)]
            self.looks += 1
        mixed = self._loss(self.model, fresh)
        self.window.fresh.append(mixed)
        if self.pure is not None:
            self.window.gains.append(self._loss(self.pure.tower, fresh) - mixed)
        if self.control is not None:
            self.window.control_gains.append(self._loss(self.control.tower, fresh) - mixed)
        if self.target_tower is not None:
            if self.target is None and self._may_learn(moment, looking=True):
                self.target_tower.look_at(fresh)
        elif self.config.mode == "influence" and self._may_learn(moment, looking=True):
            if self.config.centre == "target":
                own = self.influence.of(fresh)
                if own is not None:
                    self.moments.add_target(own)
            self.influence.look_at(fresh, self.config.direction_momentum)

    def _may_learn(self, moment: TrainingStep, *, looking: bool = False) -> bool:
        """Whether the flow network may change now: warm, on fresh rows, and the model not overfit."""
        if not looking and moment.step < self.config.warm_up_steps:
            return False
        if not self.config.guarded:
            return True
        return not self.frozen and (self._is_fresh(moment) or bool(self.held_out))

    def _close_window(self, target: Batch, moment: TrainingStep) -> None:
        """Reward the window, set the companion back, record, and look whether the model has overfit its target."""
        window, self.window, self.window_due = self.window, Window(), False
        seen = self._loss(self.model, target)
        fresh = sum(window.fresh) / max(len(window.fresh), 1)
        keep = _GAP_MOMENTUM if self.window_rows else 0.0
        self.fresh_loss = keep * self.fresh_loss + (1 - keep) * fresh
        self.seen_loss = keep * self.seen_loss + (1 - keep) * seen
        learning = self._may_learn(moment)
        if window.gains and learning and self.config.mode == "reinforce":
            self._reinforce(window)
        if self.config.mode == "bucket":
            self._turn_bandit(target, learning)
        if self.pure is not None:
            self.pure.become(self.model, self.optimisers)
        gap = (self.fresh_loss - self.seen_loss) / max(self.fresh_loss, 1e-12)
        self.frozen = self.config.guarded and gap > self.config.overfit_gap
        ahead = self.target_tower is not None and self.target is not None
        stale = self.config.guarded and not ahead and not self._is_fresh(moment) and not self.held_out
        self.window_rows.append(
            {
                "step": moment.step + 1,
                "gain": _mean(window.gains),
                "control_gain": _mean(window.control_gains),
                "fresh_loss": self.fresh_loss,
                "seen_loss": self.seen_loss,
                "frozen": self.frozen or stale,
            }
        )
        self.weight_rows += window.percentiles(moment.step + 1)

    @torch.no_grad()
    def _loss(self, model: nn.Module, batch: Batch) -> float:
        with evaluating(model), autocast(batch.label.device, self.training.bf16):
            return float(task_loss(model(batch), batch, self.training.task))

    # Source rows

    def _weights(self, source: Batch, moment: TrainingStep) -> Tensor:
        """w of each row, (B,), after the flow network learned from the batch where its mode does that here."""
        ones = torch.ones_like(source.label)
        warming = moment.step < self.config.warm_up_steps and self.target is None
        mode = self.config.mode
        if mode != "uniform":
            traits = self._traits(source)
            self.source_batches += 1
            due = self.source_batches % self.config.update_every == 0
            if self.target_tower is not None:
                if due:
                    self._learn_from_target_tower(source, traits, moment)
            elif mode == "influence" and due and self._may_learn(moment, looking=True):
                self._learn_influence(source, traits, learn=not warming)
        if mode == "uniform" or warming:
            self.window.note(source.domain, ones)
            return ones
        with torch.no_grad():
            u = self.flow(traits)
        weight = self.config.largest * torch.sigmoid(u)
        self.window.note(source.domain, weight)
        if not self._may_learn(moment):
            return weight
        if mode == "reinforce":
            action = u + torch.exp(self.flow.log_sigma.detach()) * torch.randn_like(u)
            self.window.actions.append((traits, action))
            return self.config.largest * torch.sigmoid(action)
        if mode == "bucket":
            worth = self.bandit.value().to(u.device)
            bucket = self.bandit.bucket(traits)
            self._flow_step(regression_loss(self.flow(traits), worth[bucket]))
            return self.bandit.kept.to(u.device)[bucket] * weight.clamp(min=0.1)
        return weight

    def _learn_from_target_tower(self, source: Batch, traits: Traits, moment: TrainingStep) -> None:
        """Enter the batch into the source values, and let weights follow it: u = start + steepness x (worth -
        expected)."""
        assert self.target_tower is not None
        beside = self.target is None
        if (beside and not self._may_learn(moment, looking=True)) or self.source_values.rows >= self.config.enough_rows:
            return
        if self.sources is not None:
            return
        self._enter(source, traits)
        if self.source_values.due():
            self.flow.solved.copy_(self.config.steepness * self.source_values.solve())

    def _enter(self, source: Batch, traits: Traits) -> None:
        if self.target_tower is None or self.target_tower.unit <= 0:
            return
        for number in torch.unique(source.domain).tolist():
            mine = source.domain == number
            self.source_values.add(
                traits.rows(mine), self.target_tower.influence(source.rows(mine)), self.target_tower.unit
            )

    def _look_ahead(self, device: torch.device) -> list[Traits]:
        """Let the target-only tower learn, enter what sources have, up to enough rows, and close the source values.
        Once; what it saw."""
        if self.target_tower is None or self.target is None or self.target_tower.passes:
            return []
        seen = []
        with torch.random.fork_rng(devices=[]):
            self.target_tower.learn_ahead(self.target, self.config.ahead_passes)
            for batch in self.sources.batches(0) if self.sources is not None else ():
                here = batch.to(device)
                seen.append(self._traits(here))
                self._enter(here, seen[-1])
                if self.source_values.rows >= self.config.enough_rows or not self.source_values.rows:
                    break
        if self.source_values.due():
            self.flow.solved.copy_(self.config.steepness * self.source_values.solve())
        return seen

    def _learn_influence(self, source: Batch, traits: Traits, *, learn: bool) -> None:
        """Regress the weight's logit on influence: u = neutral + sensitivity x expected influence of such a sample.

        Pushing w itself up or down instead lets every weight drift to 0 or 1 where there is no evidence either way.
        """
        influence = self.influence.of(source)
        if influence is None:
            return
        worth = self.moments.worth(influence, self.config.centre)
        for domain in torch.unique(source.domain).tolist():
            self.moments.add(domain, influence[source.domain == domain], worth[source.domain == domain])
        if learn:
            neutral = math.log(self.config.start / (1 - self.config.start))
            self._flow_step(((self.flow(traits) - neutral) / self.config.sensitivity - worth).square().mean())

    def _reinforce(self, window: Window) -> None:
        """Policy gradient of all actions of the window under one reward: the gain, standardised by its own past."""
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
            self._flow_step(torch.stack(losses).mean())

    def _turn_bandit(self, target: Batch, learning: bool) -> None:
        """Close the window by the fall of one batch's loss, and open the next with another batch."""
        if learning and self.yardstick is not None:
            self.bandit.close_window(self.yardstick_loss - self._loss(self.model, self.yardstick))
        self.yardstick = self.held_out[self.looks % len(self.held_out)] if self.held_out else target
        self.looks += 1
        self.yardstick_loss = self._loss(self.model, self.yardstick)
        self.bandit.new_window()

    def _flow_step(self, loss: Tensor) -> None:
        self.flow_optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.flow_optimiser.step()

    @torch.no_grad()
    def _scores(self, batch: Batch) -> Tensor:
        towers = [self.model, self.pure.tower if self.pure is not None else self.model]
        scores = []
        for tower in towers:
            with evaluating(tower), autocast(batch.label.device, self.training.bf16):
                scores.append(tower(batch).float())
        return torch.stack(scores, 1)

    def _traits(self, source: Batch) -> Traits:
        scores = self._scores(source) if self.config.show_scores else None
        provenance = self.provenance(source).to(source.label.device) if self.provenance is not None else None
        return Traits.of(source, scores, provenance)

    # What was learned

    def judge(self, model: nn.Module, optimisers: Optimisers, config: TrainConfig) -> TransferReport:
        """What a target-only tower says of sources before anything is trained; of ``model`` nothing changes.

        For those who take nothing of what harms, no row and no event of a history either. Needs `target_tower_from`
        first. Training an equal model with this object goes on from here.
        """
        self.begin(model, optimisers, config)
        for traits in self._look_ahead(next(model.parameters()).device):
            self.window.note(traits.domain, self._weight_now(traits))
        self.judged = (self.target_tower, self.source_values, self.flow.solved.clone())
        return self.report()

    @torch.no_grad()
    def weights_of(self, source: Batch) -> Tensor:
        """w of source rows as things stand, (B,), learning nothing from them."""
        if self.config.mode == "uniform":
            return torch.ones_like(source.label)
        return self._weight_now(self._traits(source))

    @torch.no_grad()
    def _weight_now(self, traits: Traits) -> Tensor:
        return self.flow.weight(traits)

    def report(self) -> TransferReport:
        """Weights and gains over time, and a verdict on each source from its settled weights and its influence."""
        rows = self.weight_rows + self.window.percentiles(self.steps)  # a last window may not have come to its end
        evidence = {source: self._evidence(source) for source in {row["source"] for row in rows}}
        found = verdicts(self.config, rows, self.window_rows, evidence)
        if self.target_tower is None:
            return TransferReport(rows, self.window_rows, found)
        return TransferReport(rows, self.window_rows, found, self._parts(), self.target_tower.certainty)

    def _evidence(self, source: int) -> tuple[float, float]:
        return self.moments.evidence(source) if self.target_tower is None else self.source_values.evidence(source)[:2]

    def _parts(self) -> tuple[Part, ...]:
        """Parts of sources of which enough rows are known, the most harmful first."""
        parts = []
        alone = sum(group == "source" for _, group, _, _ in self.source_values.named.values()) == 1
        for key, (source, group, at, code) in self.source_values.named.items():
            worth, certainty, rows = self.source_values.evidence(key)
            if group != "source" and rows >= _ROWS_OF_A_PART and not (alone and source == ANY_SOURCE):
                harmful = harms(self.config, worth, certainty)
                parts.append(Part(source, group, at, code, rows, worth, certainty, harmful))
        return tuple(sorted(parts, key=lambda part: part.certainty))

    _PLAIN = (
        "steps",
        "source_batches",
        "looks",
        "window_due",
        "yardstick_loss",
        "reward_mean",
        "reward_square",
        "rewards",
        "fresh_loss",
        "seen_loss",
        "frozen",
        "weight_rows",
        "window_rows",
    )

    def state_dict(self) -> Nested:
        return {
            "plain": {name: getattr(self, name) for name in self._PLAIN},
            "pure": None if self.pure is None else self.pure.state_dict(),
            "control": None if self.control is None else self.control.state_dict(),
            "flow": self.flow.state_dict(),
            "flow_optimiser": optimiser_tensors(self.flow_optimiser),
            "influence": self.influence.state_dict(),
            "moments": self.moments.state_dict(),
            "target_tower": None if self.target_tower is None else self.target_tower.state_dict(),
            "source_values": self.source_values.state_dict(),
            "bandit": self.bandit.state_dict(),
            "yardstick": None if self.yardstick is None else state_of(self.yardstick),
            "window": self.window.state_dict(),
        }

    def load_state_dict(self, state: Nested) -> None:
        for name, value in state["plain"].items():
            setattr(self, name, value)
        for tower, saved in ((self.pure, state["pure"]), (self.control, state["control"])):
            if tower is not None:
                tower.load_state_dict(saved)
        self.flow.load_state_dict(state["flow"])
        load_optimiser_tensors(self.flow_optimiser, state["flow_optimiser"])
        self.influence.load_state_dict(state["influence"])
        self.moments.load_state_dict(state["moments"])
        self.bandit.load_state_dict(state["bandit"])
        self.source_values.load_state_dict(state["source_values"])
        if self.target_tower is not None:
            self.target_tower.load_state_dict(state["target_tower"])
        self.yardstick = None if state["yardstick"] is None else batch_from(state["yardstick"])
        self.window = Window.from_state(state["window"])


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None

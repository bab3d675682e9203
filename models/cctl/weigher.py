"""Collaborative cross-domain transfer (CCTL, Zhang et al. 2023): source samples weigh what they give the target.

``CollaborativeTransfer`` stands beside the one training loop as its sample weigher:

    transfer = CollaborativeTransfer(TransferConfig(targets=(0,)))
    train(model, data, config=config, sample_weigher=transfer)
    transfer.report().verdicts[3].borrow        # is source 3 worth borrowing from?

The model that the loop trains is the mixed tower. ``companion.py`` compares it with a tower of target rows alone (the
symmetric companion network), ``information_flow.py`` weighs each source row, ``learners.py`` says how the weights are
learned: by default from the influence of source rows along the path of a target tower, which never sees a source
(``influence.py``). Where the target has few rows, give them beforehand (`target_tower_from`).

Target rows always weigh 1; a source batch's loss is (share / n_s) sum w l, never divided by the weights, or small ones
would cancel. Rows that are no longer fresh mislead (good sources look harmful to a network that has memorised its
target), so:

 - fresh rows are target rows before they are first trained on, ``held_out`` ones, or those kept from the target tower;
   while their influence is not above zero for certain, every weight stays at its start;
 - a target tower that learns ahead stays at the last passes where their influence is almost the surest;
 - otherwise, from the second epoch on, without ``held_out``, the flow network is frozen;
 - it is frozen while the fresh loss exceeds the loss on rows just trained on by more than ``overfit_gap`` of itself;
 - all weights are 1 for the first ``warm_up_steps``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.batch import Batch
from models.cctl.companion import GainObserver
from models.cctl.config import Part, TransferConfig, TransferReport, Verdict, verdicts
from models.cctl.influence import PathInfluenceLearner, TargetTower
from models.cctl.information_flow import InformationFlow, Traits
from models.cctl.learners import PolicyGradient, WeightLearner
from models.cctl.window import Window
from models.training.loop import BatchSource, TrainConfig, TrainingStep
from models.training.optimisers import Nested, Optimisers

__all__ = ["CollaborativeTransfer", "Part", "TransferConfig", "TransferReport", "Verdict"]

Provenance = Callable[[Batch], Tensor]


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
        self.judged: WeightLearner | None = None

    def target_tower_from(self, target: BatchSource, sources: BatchSource | None = None) -> None:
        """Rows that the target tower may go through before the model's first step.

        Args:
            target: rows of the targets, which it passes over as often as helps.
            sources: rows of the sources, which are then valued at once, so that weights are known from the first
                step; else they are valued as they come.
        """
        self.target, self.sources = target, sources

    def begin(self, model: nn.Module, optimisers: Optimisers, config: TrainConfig) -> None:
        """Make the towers and the flow network beside ``model``."""
        device = next(model.parameters()).device
        self.targets = torch.tensor(self.config.targets, device=device)
        held_out = [batch.to(device) for batch in self.held_out]
        self.observer = GainObserver(self.config, model, optimisers, config, held_out)
        self.learner = self.judged if self.judged is not None else self._new_learner(model, optimisers, config)
        self.window = Window()
        self.weight_rows: list[dict[str, Any]] = []
        self.steps, self.source_batches, self.window_due = 0, 0, False

    def _new_learner(self, model: nn.Module, optimisers: Optimisers, training: TrainConfig) -> WeightLearner:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(training.seed)
            flow = InformationFlow(largest=self.config.largest, start=self.config.start)
        flow.to(next(model.parameters()).device)
        match self.config.mode:
            case "influence":
                tower = TargetTower(model, optimisers, training, guarded=self.config.guarded)
                return PathInfluenceLearner(self.config, flow, tower, target=self.target, sources=self.sources)
            case "reinforce":
                return PolicyGradient(self.config, flow)
            case "uniform":
                return WeightLearner(self.config, flow)

    def weigh(self, batch: Batch, step: TrainingStep) -> Tensor | None:
        """Factors of the rows' losses. Target rows are scored by the towers before the model trains on them."""
        self._look_ahead()
        is_target = torch.isin(batch.domain, self.targets)
        if bool(is_target.all()):
            self._observe(batch, step)
            return None
        if not bool(is_target.any()):
            return self.config.share * self._weights(batch, step)
        self._observe(batch.rows(is_target), step)
        factor = torch.ones_like(batch.label)
        factor[~is_target] = self.config.share * self._weights(batch.rows(~is_target), step)
        return factor

    def after_step(self, batch: Batch, step: TrainingStep) -> None:
        """Let the towers learn from the target rows, and close the window when it is over."""
        self.steps = step.number + 1
        is_target = torch.isin(batch.domain, self.targets)
        if bool(is_target.any()):
            target = batch if bool(is_target.all()) else batch.rows(is_target)
            self.observer.learn(target)
            self.learner.learn_target(target)
            if self.window_due:
                self._close_window(target, step)
        if self.steps % self.config.sync_every == 0:
            self.window_due = True

    def _look_ahead(self) -> list[Traits]:
        if not isinstance(self.learner, PathInfluenceLearner):
            return []
        return self.learner.learn_ahead(self._traits, self.targets.device)

    def _observe(self, target: Batch, step: TrainingStep) -> None:
        fresh = self.observer.fresh_rows(target, step)
        self.observer.observe(fresh, self.window)
        if self.observer.is_trusted(step):
            self.learner.look_at(fresh)

    def _weights(self, source: Batch, step: TrainingStep) -> Tensor:
        """w of each row, (B,), after the flow network learned from the batch where its mode does that here."""
        warm = step.number >= self.config.warm_up_steps
        trusted = self.observer.is_trusted(step)
        if self.config.mode != "uniform":
            traits = self._traits(source)
            self.source_batches += 1
            if self.source_batches % self.config.update_every == 0 and (trusted or self.learner.ahead):
                self.learner.learn(source, traits)
            if warm or self.target is not None:
                act = self.learner.try_weights if warm and trusted else self.learner.weights
                return act(traits, self.window)
        ones = torch.ones_like(source.label)
        self.window.note(source.domain, ones)
        return ones

    def _close_window(self, target: Batch, step: TrainingStep) -> None:
        window, self.window, self.window_due = self.window, Window(), False
        self.observer.compare(window, target)
        learning = step.number >= self.config.warm_up_steps and self.observer.is_trusted(step)
        self.learner.close_window(window, learning=learning)
        self.observer.close(window, step, judges_rows=not self.learner.ahead)
        self.weight_rows += window.percentiles(step.number + 1)

    def _traits(self, source: Batch) -> Traits:
        outputs = self.observer.outputs(source) if self.config.show_scores else None
        provenance = self.provenance(source).to(source.label.device) if self.provenance is not None else None
        return Traits.of(source, outputs, provenance)

    # What was learned

    def judge(self, model: nn.Module, optimisers: Optimisers, config: TrainConfig) -> TransferReport:
        """What a target tower says of sources before anything is trained; of ``model`` nothing changes.

        For those who take nothing of what harms, no row and no event of a history either. Needs `target_tower_from`
        first. Training an equal model with this object goes on from here.
        """
        self.begin(model, optimisers, config)
        for traits in self._look_ahead():
            self.learner.weights(traits, self.window)
        self.judged = self.learner
        return self.report()

    @torch.no_grad()
    def weights_of(self, source: Batch) -> Tensor:
        """w of source rows as things stand, (B,), learning nothing from them."""
        if self.config.mode == "uniform":
            return torch.ones_like(source.label)
        return self.learner.flow.weight(self._traits(source))

    def report(self) -> TransferReport:
        """Weights and gains over time, and a verdict on each source from its settled weights and its value."""
        rows = self.weight_rows + self.window.percentiles(self.steps)  # a last window may not have come to its end
        windows, learner = self.observer.windows, self.learner
        found = verdicts(self.config, rows, windows, learner.evidence())
        return TransferReport(rows, windows, found, learner.parts(), learner.certainty())

    _PLAIN = ("steps", "source_batches", "window_due", "weight_rows")

    def state_dict(self) -> Nested:
        return {
            "plain": {name: getattr(self, name) for name in self._PLAIN},
            "observer": self.observer.state_dict(),
            "learner": self.learner.state_dict(),
            "window": self.window.state_dict(),
        }

    def load_state_dict(self, state: Nested) -> None:
        for name, value in state["plain"].items():
            setattr(self, name, value)
        self.observer.load_state_dict(state["observer"])
        self.learner.load_state_dict(state["learner"])
        self.window = Window.from_state(state["window"])

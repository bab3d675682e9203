"""Any network of the tables by its name, built for a feature encoder, trained by the one loop, asked for its scores.

    found = fit("MMoE", workspace, recipe, slots)
    found.score(rows, slot)  # click probabilities, or ratings

All of them get what ours gets: the same rows in the same batches, the items' means, the histories, the width, the head,
the epochs, the early stopping. Names: those of ``MULTI_DOMAIN`` and ``LIFELONG``; ``<lifelong> + CRP`` for LCN's
contrast beside a lifelong baseline; ``Graft`` and ``Graft + CRP``; ``Graft + <loss>`` for a loss of ``SELF_SUPERVISED``
beside our own network, whose kind of architecture the recipe names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor, nn

from benchmarks.baselines import LIFELONG, SELF_SUPERVISED
from benchmarks.baselines.self_supervised import WithAuxiliary
from models.baselines import MULTI_DOMAIN
from models.baselines.inputs import Baseline, BaselineConfig
from models.layers.contrast import ContrastConfig
from models.layers.embeddings import ItemTable, RowTable
from models.ranker.network import Ranker
from models.training import loop
from orchestrator.data.batches import BatchBuilder, DomainBatchSampler, Examples
from orchestrator.data.dataset import Workspace
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.training import fit as fitting
from orchestrator.training.fit import TrainingSet
from orchestrator.training.recipe import Recipe

OURS = "Graft"
CRP = " + CRP"
ALONE = ("DNN-single",)
"""Baselines that know one domain: a network of their own for each."""
AUXILIARY_WEIGHT = 0.1

BASELINES: dict[str, Callable[[BaselineConfig, Tensor | None], Baseline]] = {
    **MULTI_DOMAIN,
    **LIFELONG,
    **{name + CRP: partial(make, contrast=ContrastConfig()) for name, make in LIFELONG.items()},
}
NAMES = (OURS, OURS + CRP, *BASELINES, *(f"{OURS} + {name}" for name in SELF_SUPERVISED))


@dataclass(frozen=True)
class Trained:
    """A trained network (several for a baseline that knows one domain only: ``networks`` has one a slot)."""

    networks: tuple[nn.Module, ...]
    encoder: FeatureEncoder
    batch_builder: BatchBuilder
    results: tuple[loop.TrainResult, ...]

    def score(self, rows: Examples, slot: int) -> np.ndarray:
        """Click probabilities or ratings of rows in their order, (N,)."""
        return score(self.networks[slot], self.batch_builder, rows, slot)

    @property
    def detail(self) -> dict[str, Any]:
        """What the table says of it: numbers trained, the epoch that validation chose and its score there."""
        parts = {id(part): part.numel() for network in self.networks for part in network.parameters()}
        return {
            "parameters": sum(parts.values()),
            "best_epoch": [result.best_epoch for result in self.results],
            "validation": [result.best for result in self.results],
        }


def fit(
    name: str,
    workspace: Workspace,
    recipe: Recipe,
    slots: Sequence[str],
    *,
    auxiliary_weight: float = AUXILIARY_WEIGHT,
    training_set: TrainingSet | None = None,
) -> Trained:
    """Train a network of ``NAMES`` on the training rows of the named domains, sources first; one slot each.

    Args:
        auxiliary_weight: factor of the loss beside the task's, where the network has one.
        training_set: what to learn from, where it is not simply the workspace's split.
    """
    learnt = training_set or fitting.training_set(workspace, recipe, slots)
    batch_builder = workspace.batch_builder(learnt.encoder, slots)
    parts = [learnt]
    if name in ALONE:
        parts = [only(learnt, slot) for slot in range(len(slots))]
    networks, results = [], []
    for part in parts:
        network = build(name, workspace, recipe, part)
        ranker = _ranker(network)
        searched = None
        if ranker is not None:
            fitting.prepare(ranker, part, batch_builder, seed=recipe.seed)
            searched = fitting.searched_parameters(ranker)
            if isinstance(network, WithAuxiliary):
                searched += list(network.task.parameters())
        results.append(
            fitting.learn(
                network,
                part,
                batch_builder,
                recipe,
                auxiliary_weight=auxiliary_weight,
                parameters=searched,
                consider_start=ranker is not None and fitting.start_of(ranker),
            )
        )
        users = _users(network)
        if users is not None:
            fitting.forget_unmet_users(users, part)
        networks.append(network.cpu().eval())
    return Trained(
        tuple(networks) * (1 if name in ALONE else len(slots)), learnt.encoder, batch_builder, tuple(results)
    )


def only(learnt: TrainingSet, slot: int) -> TrainingSet:
    """The same training set without the rows of all other domains."""
    return TrainingSet(
        learnt.encoder,
        [part for part in learnt.train if part[1] == slot],
        [part for part in learnt.validation if part[1] == slot],
        learnt.means,
        learnt.values,
    )


def build(name: str, workspace: Workspace, recipe: Recipe, learnt: TrainingSet) -> nn.Module:
    """A fresh network for the encoder of the training set, with the items' means set.

    Raises:
        ValueError: no network of that name.
    """
    encoder = learnt.encoder
    if name not in NAMES:
        raise ValueError(f"no network is called {name!r}; there are {', '.join(NAMES)}")
    if name == OURS:
        return fitting.new_ranker(workspace, encoder, recipe, mean_label=learnt.mean_label)
    if name == OURS + CRP:
        with_crp = recipe.model_copy(update={"contrastive_weight": AUXILIARY_WEIGHT})
        return fitting.new_ranker(workspace, encoder, with_crp, mean_label=learnt.mean_label)
    if name not in BASELINES:
        backbone = fitting.new_ranker(workspace, encoder, recipe, mean_label=learnt.mean_label)
        make: Any = SELF_SUPERVISED[name.removeprefix(f"{OURS} + ")]
        codes = (backbone.embeddings.source_items.codes,) if name.endswith(" SSL") else ()
        return WithAuxiliary(backbone, make(recipe.width, *codes))
    # Only to lay the means out as networks hold them; narrow, because nothing of it is trained.
    shape = fitting.new_ranker(
        workspace,
        encoder,
        recipe.model_copy(update={"width": 4, "architecture": "dacdr"}),
        mean_label=learnt.mean_label,
    )
    fitting.set_means(shape, encoder, learnt.means, learnt.values)
    own: list[ItemTable | None] = [shape.owned(slot).items for slot in range(len(encoder.slots))]
    return fitting.new_baseline(
        BASELINES[name],
        encoder,
        recipe,
        source=shape.embeddings.source_items,
        own=own,
        source_values=shape.wide.source_values,
        mean_label=learnt.mean_label,
    )


def score(network: nn.Module, batch_builder: BatchBuilder, rows: Examples, slot: int) -> np.ndarray:
    """Click probabilities or ratings of rows in their order, (N,), calibrated where the network is."""
    batches = DomainBatchSampler(batch_builder, [(rows, slot)], batch_size=4096, seed=0, shuffle=False).batches(0)
    task: Any = batch_builder.encoder.task
    return loop.predict(network, batches, task=task)["score"]


def _ranker(network: nn.Module) -> Ranker | None:
    inner = network.backbone if isinstance(network, WithAuxiliary) else network
    return inner if isinstance(inner, Ranker) else None


def _users(network: nn.Module) -> RowTable | None:
    inner = _ranker(network)
    return network.inputs.users if inner is None else inner.embeddings.users  # type: ignore[return-value, union-attr]

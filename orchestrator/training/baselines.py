"""What a team would otherwise use, trained on the same rows as the adapter, so that a gate can name it.

Two baselines share the adapter's network: ``full_fine_tune`` moves every weight of it, ``scratch`` starts from none.
Two are networks of their own (``models/baselines``): ``single_domain`` reads this domain alone, ``shared_bottom``
learns the sources beside it. All start from the same wide features and stop early on the same validation users.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.special import expit
from torch import nn

from models.baselines import DNNSingle, SharedBottom
from models.baselines.inputs import Baseline
from models.layers.embeddings import ItemTable
from models.ranker import adapters
from models.ranker.network import Ranker
from models.training import loop
from orchestrator.data.batches import BatchBuilder, DomainBatchSampler, Examples
from orchestrator.data.dataset import Workspace
from orchestrator.data.scoring import outputs
from orchestrator.data.target_encoding import fit_target_encoding, leave_one_out
from orchestrator.training.fine_tune import calibration
from orchestrator.training.fit import new_baseline, own_values, searched_parameters, set_own_means, train_config
from orchestrator.training.recipe import Recipe
from orchestrator.training.wide_fit import fit_own_wide_weights, fit_wide_weights

TRAINED = ("single_domain", "shared_bottom", "full_fine_tune", "scratch")
"""The baselines that have to be trained; others are read off the rows."""
NETWORKS: dict[str, type[Baseline]] = {"single_domain": DNNSingle, "shared_bottom": SharedBottom}
"""Those among them that are networks of their own."""


def predict(
    name: str,
    *,
    ranker: Ranker,
    slot: int,
    recipe: Recipe,
    workspace: Workspace,
    batch_builder: BatchBuilder,
    train: Examples,
    validation: Examples,
    test: Examples,
    on_progress: Callable[[loop.Progress], None] | None = None,
) -> np.ndarray:
    """Train one baseline and answer its predictions of the test rows, (N,) probabilities or ratings.

    Args:
        ranker: the backbone with a fresh slot for the domain; ``full_fine_tune`` moves it, the others only read it.

    Raises:
        ValueError: no such baseline.
    """
    task = ranker.config.task
    means = fit_target_encoding(train, len(workspace.data(train.domain).item_vocabulary), task)
    rows = leave_one_out(train, means)
    parts = [(rows, slot)]
    epochs, batch_size, searched = recipe.fine_tune_epochs, recipe.fine_tune_batch_size, None
    network: nn.Module
    if name in ("full_fine_tune", "scratch"):
        network = whole = ranker if name == "full_fine_tune" else _from_scratch(ranker, recipe.seed)
        set_own_means(whole, slot, means.means, own_values(train, len(means.means)))
        adapters.unfreeze(whole)
        if whole.wide.solved and name == "full_fine_tune":
            fit_own_wide_weights(whole, batch_builder, rows, slot, seed=recipe.seed)
        elif whole.wide.solved:  # there is no shared model to add to
            fit_wide_weights(whole, batch_builder, parts, seed=recipe.seed)
        searched = searched_parameters(whole)
        rate = recipe.fine_tune_learning_rate / (3 if name == "full_fine_tune" else 1)
    elif name in ("single_domain", "shared_bottom"):
        network = _baseline(name, ranker, slot, means=means.means, recipe=recipe, batch_builder=batch_builder)
        rate = recipe.learning_rate
        if name == "shared_bottom":
            # It learns as the shared model did, from as many rows at a time: most of them are the sources'.
            parts += _source_parts(workspace, batch_builder, task, recipe)
            epochs, batch_size = recipe.epochs, recipe.batch_size
    else:
        raise ValueError(f"no baseline is called {name!r}; there are {', '.join(TRAINED)}")
    held_out = DomainBatchSampler(batch_builder, [(validation, slot)], batch_size=4096, seed=0, shuffle=False)
    loop.train(
        network,
        DomainBatchSampler(batch_builder, parts, batch_size=batch_size, seed=recipe.seed),
        config=train_config(
            recipe, epochs=epochs, learning_rate=rate, patience=max(recipe.patience, 1), consider_start=True, task=task
        ),
        validation=held_out if len(validation) else None,
        parameters=searched,
        on_progress=on_progress,
    )
    return _predictions(network.eval(), ranker, batch_builder, slot, validation=validation, test=test)


def _predictions(
    network: nn.Module,
    ranker: Ranker,
    batch_builder: BatchBuilder,
    slot: int,
    *,
    validation: Examples,
    test: Examples,
) -> np.ndarray:
    """Calibrated where the adapter is, since a report that calibrated one side alone would flatter it."""
    task = ranker.config.task
    score = outputs(network, batch_builder, test, slot)
    if len(validation) and not ranker.config.wide:
        scale, shift = calibration(task, outputs(network, batch_builder, validation, slot), validation.label)
        score = score * scale + shift
    return expit(score) if task == "ctr" else score


def _from_scratch(ranker: Ranker, seed: int) -> Ranker:
    """The same structure and wide features, and nothing that was learned."""
    torch.manual_seed(seed)
    fresh = Ranker(ranker.config, ranker.embeddings.source_items.codes)
    for number in range(len(ranker.domains)):
        owned = ranker.owned(number)
        fresh.add_domain(owned.config, None if owned.items is None else owned.items.codes)
    fresh.embeddings.source_items.set_means(ranker.embeddings.source_items.means)
    buffers = dict(ranker.wide.named_buffers())
    for name, value in fresh.wide.named_buffers():
        value.copy_(buffers[name])
    return fresh


def _own_items(ranker: Any, slot: int) -> Any:
    items = ranker.owned(slot).items
    assert items is not None, "a target domain owns its items"
    return items


def _baseline(
    name: str, ranker: Ranker, slot: int, *, means: np.ndarray, recipe: Recipe, batch_builder: BatchBuilder
) -> Baseline:
    tables = [ranker.owned(number).items for number in range(slot + 1)]
    # A stand-in with this launch's means: the ranker itself must not learn of them from a baseline.
    own = ItemTable(len(means), 1, _own_items(ranker, slot).codes, len(ranker.config.item_fields), scale=0.0)
    own.set_means(torch.from_numpy(means))
    return new_baseline(
        NETWORKS[name],
        batch_builder.encoder,
        recipe.model_copy(update={"width": ranker.config.width}),
        source=ranker.embeddings.source_items,
        own=[*tables[:-1], own],
        source_values=ranker.wide.source_values,
        mean_label=ranker.config.mean_label,
    )


def _source_parts(
    workspace: Workspace, batch_builder: BatchBuilder, task: str, recipe: Recipe
) -> list[tuple[Examples, int]]:
    """Training rows of every source of the encoder, and their slots."""
    parts = []
    encoder = batch_builder.encoder
    for source in encoder.sources:
        rows = workspace.examples(encoder, source.domain)
        rows = rows.take(workspace.split(rows).train)
        means = fit_target_encoding(rows, source.size, task)
        drawn = np.random.default_rng(recipe.seed).permutation(len(rows))[: recipe.baseline_source_rows]
        parts.append((leave_one_out(rows, means).take(np.sort(drawn)), encoder.slots.index(source.domain)))
    return parts

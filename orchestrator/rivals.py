"""What a team would otherwise use, trained on the same rows as the adapter, so that a gate can name it.

Two rivals share the adapter's network: ``full_fine_tune`` moves every weight of it, ``scratch`` starts from none. Two
are networks of their own (``models/baselines``): ``single_domain`` reads this domain alone, ``shared_bottom`` learns
the sources beside it. All start from the same plain facts and stop early on the same validation users.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from models import adapters, training
from models.baselines import DNNSingle, SharedBottom
from models.baselines.inputs import Rival
from models.embeddings import ItemTable
from models.ranker import Ranker
from orchestrator.fitting import new_rival
from orchestrator.item_means import item_means, without_itself
from orchestrator.recipe import Recipe
from orchestrator.training_data import Assembler, EpochOfDomains, Examples
from orchestrator.workspace import Workspace

TRAINED = ("single_domain", "shared_bottom", "full_fine_tune", "scratch")
SOURCE_ROWS = 100_000
"""Rows of each source that shared-bottom learns from, drawn by the seed, so that a launch stays a matter of minutes."""


def predict(
    name: str,
    *,
    ranker: Ranker,
    slot: int,
    recipe: Recipe,
    workspace: Workspace,
    assembler: Assembler,
    known: Examples,
    validation: Examples,
    test: Examples,
    on_progress: Callable[[training.Progress], None] | None = None,
) -> np.ndarray:
    """Train one rival and answer its predictions of the test rows, (N,) probabilities or ratings.

    Args:
        ranker: the backbone with a fresh slot for the domain; ``full_fine_tune`` moves it, the others only read it.

    Raises:
        ValueError: no such rival.
    """
    means = item_means(known, len(workspace.data(known.domain).item_vocabulary), ranker.config.task)
    rows = without_itself(known, means)
    network: nn.Module
    parts = [(rows, slot)]
    if name in ("full_fine_tune", "scratch"):
        network = ranker if name == "full_fine_tune" else _from_scratch(ranker, slot, recipe.seed)
        _own_items(network, slot).set_means(torch.from_numpy(means.means))
        adapters.unfreeze(network)
        rate = recipe.fine_tune_learning_rate / (3 if name == "full_fine_tune" else 1)
    elif name in ("single_domain", "shared_bottom"):
        network = _baseline(name, ranker, slot, means.means, recipe, assembler)
        rate = recipe.learning_rate
        if name == "shared_bottom":
            parts += _source_parts(workspace, assembler, ranker.config.task, recipe.seed)
    else:
        raise ValueError(f"no rival is called {name!r}; there are {', '.join(TRAINED)}")
    held = EpochOfDomains(assembler, [(validation, slot)], batch_size=4096, seed=0, shuffle=False)
    training.train(
        network,
        EpochOfDomains(assembler, parts, batch_size=recipe.fine_tune_batch_size, seed=recipe.seed),
        config=training.TrainConfig(
            task=ranker.config.task,
            epochs=recipe.fine_tune_epochs,
            learning_rate=rate,
            weight_decay=recipe.weight_decay,
            patience=max(recipe.patience, 1),
            consider_start=True,
            seed=recipe.seed,
        ),
        validation=held if len(validation) else None,
        on_progress=on_progress,
    )
    network.eval()
    with torch.inference_mode():
        scores = [
            network(batch)
            for batch in EpochOfDomains(assembler, [(test, slot)], batch_size=4096, seed=0, shuffle=False).batches(0)
        ]
    score = torch.cat(scores).float()
    return (score.sigmoid() if ranker.config.task == "ctr" else score).numpy()


def _from_scratch(ranker: Ranker, slot: int, seed: int) -> Ranker:
    """The same structure with the plain facts and none of the learning."""
    torch.manual_seed(seed)
    fresh = Ranker(ranker.config, ranker.source_items.codes)
    for number in range(len(ranker.domains)):
        owned = ranker.owned(number)
        fresh.add_domain(owned.config, None if owned.items is None else owned.items.codes)
    fresh.source_items.set_means(ranker.source_items.means)
    facts = dict(ranker.named_buffers(recurse=False))
    for name, value in fresh.named_buffers(recurse=False):
        value.copy_(facts[name])
    return fresh


def _own_items(ranker: Any, slot: int) -> Any:
    items = ranker.owned(slot).items
    assert items is not None, "a target domain owns its items"
    return items


def _baseline(name: str, ranker: Ranker, slot: int, means: np.ndarray, recipe: Recipe, assembler: Assembler) -> Rival:
    tables = [ranker.owned(number).items for number in range(slot + 1)]
    # A stand-in with this launch's means: the ranker itself must not learn of them from a rival.
    own = ItemTable(len(means), 1, _own_items(ranker, slot).codes, len(ranker.config.item_fields), scale=0.0)
    own.set_means(torch.from_numpy(means))
    return new_rival(
        DNNSingle if name == "single_domain" else SharedBottom,
        assembler.layout,
        recipe.model_copy(update={"width": ranker.config.width}),
        source=ranker.source_items,
        own=[*tables[:-1], own],
        source_values=ranker.source_values,
        mean_label=ranker.config.mean_label,
    )


def _source_parts(workspace: Workspace, assembler: Assembler, task: str, seed: int) -> list[tuple[Examples, int]]:
    """Training rows of every source of the layout, and their slots."""
    parts = []
    layout = assembler.layout
    for source in layout.sources:
        rows = workspace.examples(layout, source.domain)
        rows = rows.take(workspace.split(rows).train)
        means = item_means(rows, source.size, task)
        drawn = np.random.default_rng(seed).permutation(len(rows))[:SOURCE_ROWS]
        parts.append((without_itself(rows, means).take(np.sort(drawn)), layout.slots.index(source.domain)))
    return parts

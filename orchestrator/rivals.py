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

from domains.histories import ACTIONS
from models import adapters, training
from models.baselines import DNNSingle, SharedBottom
from models.baselines.inputs import Rival, RivalConfig
from models.ranker import DomainConfig, Ranker
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
        network = _baseline(name, ranker, slot, means.means, workspace, assembler, recipe.seed)
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


def _baseline(
    name: str,
    ranker: Ranker,
    slot: int,
    means: np.ndarray,
    workspace: Workspace,
    assembler: Assembler,
    seed: int,
) -> Rival:
    torch.manual_seed(seed)
    config = ranker.config
    own: list[DomainConfig] = [ranker.owned(number).config for number in range(slot + 1)]
    codes = [ranker.source_items.codes]
    all_means = [ranker.source_items.means]
    for number, domain in enumerate(own):
        if domain.items:
            items = _own_items(ranker, number)
            codes.append(items.codes)
            all_means.append(torch.from_numpy(means) if number == slot else items.means)
    network = (DNNSingle if name == "single_domain" else SharedBottom)(
        RivalConfig(
            source_items=config.source_items,
            domain_items=tuple(domain.items for domain in own),
            item_fields=config.item_fields,
            user_fields=config.user_fields,
            context_fields=config.context_fields,
            actions=len(ACTIONS),
            users=config.users,
            width=config.width,
            short=assembler.layout.short,
            mean_label=config.mean_label,
            task=config.task,
        ),
        torch.cat(codes) if config.item_fields else None,
    )
    network.inputs.set_means(torch.cat(all_means), ranker.source_values)
    return network


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

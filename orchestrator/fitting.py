"""A network for a layout, trained on the rows of its domains; what shared training, launches and benchmarks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domains.histories import ACTIONS
from models import training
from models.contrast import ContrastConfig
from models.distributed import Alone
from models.evidence import LEVELS
from models.ranker import DomainConfig, Ranker, RankerConfig
from orchestrator.encoding import Layout
from orchestrator.evidence_fit import fit_evidence
from orchestrator.item_means import ItemMeans, item_means, without_itself
from orchestrator.recipe import Recipe
from orchestrator.training_data import EpochOfDomains, Examples
from orchestrator.workspace import Workspace

EVALUATED_ROWS = 50_000
"""Held-out rows of a domain that are looked at, at most."""


def fit(
    workspace: Workspace,
    recipe: Recipe,
    slots: Sequence[str],
    *,
    sample_weigher: training.SampleWeigher | None = None,
    checkpoint_dir: Path | None = None,
    on_progress: Callable[[training.Progress], None] | None = None,
    peers: Alone = training.ALONE,
) -> tuple[Ranker, Layout]:
    """A network trained on the training rows of the named domains, sources first; one slot each, in that order.

    Where ``peers`` train it together, it is whole in the first of them only.
    """
    layout = workspace.fit_layout(
        task=recipe.task,
        slots=slots,
        lifelong=recipe.lifelong,
        short=recipe.short,
        with_users=recipe.user_embedding,
        until_us=None,
    )
    means: dict[str, ItemMeans] = {}
    values: dict[str, np.ndarray] = {}
    train_parts: list[tuple[Examples, int]] = []
    validation_parts: list[tuple[Examples, int]] = []
    newest_us = None
    for slot, name in enumerate(slots):
        rows = workspace.examples(layout, name)
        split = workspace.split(rows)
        known = rows.take(split.train)
        means[name] = item_means(known, len(workspace.data(name).item_vocabulary), recipe.task)
        values[name] = item_means(replace(known, label=known.value), len(means[name].means), "rating").means
        train_parts.append((without_itself(known, means[name]), slot))
        validation_parts.append((rows.take(sample(split.validation, EVALUATED_ROWS)), slot))
        if len(known):
            newest_us = max(newest_us or 0, int(known.time_us.max()))
    layout = replace(layout, trained_until_us=newest_us)
    assembler = workspace.assembler(layout, slots)
    ranker = new_ranker(
        workspace,
        layout,
        recipe,
        mean_label=float(np.concatenate([rows.label for rows, _ in train_parts]).mean()),
    )
    set_means(ranker, layout, {name: found.means for name, found in means.items()}, values)
    if ranker.config.wide:
        set_bands(ranker, np.concatenate([rows.value for rows, slot in train_parts if layout.source(slots[slot])]))
        fit_evidence(ranker, assembler, train_parts, seed=recipe.seed)
    validation = EpochOfDomains(
        assembler,
        [part for part in validation_parts if len(part[0])],
        batch_size=4096,
        seed=0,
        shuffle=False,
        share=(peers.rank, peers.world),
    )
    training.train(
        ranker,
        EpochOfDomains(
            assembler,
            train_parts,
            batch_size=recipe.batch_size,
            seed=recipe.seed,
            share=(peers.rank, peers.world),
        ),
        config=training.TrainConfig(
            task=recipe.task,
            epochs=recipe.epochs,
            learning_rate=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            patience=recipe.patience,
            auxiliary_weight=recipe.contrastive_weight,
            consider_start=ranker.config.wide,
            seed=recipe.seed,
            checkpoint_every_steps=recipe.checkpoint_every_steps,
            prefetch=2,
            device=peers.device,
        ),
        validation=validation if len(validation) else None,
        checkpoint_dir=checkpoint_dir,
        on_progress=on_progress,
        parameters=searched_parameters(ranker),
        sample_weigher=sample_weigher,
        peers=peers,
    )
    if ranker.users is not None and peers.leads:
        # A user whom training never met must be read as unknown, not as the noise his row started from.
        unmet = np.ones(layout.users, bool)
        unmet[np.concatenate([rows.user[rows.user < layout.users] for rows, _ in train_parts])] = False
        with torch.no_grad():
            ranker.users.weight[torch.from_numpy(unmet)] = ranker.users.weight[0]
    return ranker.cpu().eval(), layout


def new_ranker(workspace: Workspace, layout: Layout, recipe: Recipe, *, mean_label: float) -> Ranker:
    """A fresh network for a layout, with a slot for each of its domains."""
    torch.manual_seed(recipe.seed)
    rating = recipe.task == "rating"
    ranker = Ranker(
        RankerConfig(
            source_items=layout.source_rows_total,
            item_fields=tuple(field.size for field in layout.item_fields),
            user_fields=tuple(field.size for field in layout.user_fields),
            context_fields=tuple(field.size for field in layout.context_fields),
            domain_fields=tuple(field.size for field in layout.domain_fields),
            users=layout.users,
            width=recipe.width,
            actions=len(ACTIONS),
            task=recipe.task,
            interest=recipe.interest,
            wide=rating,
            # Beside wide facts little is left to learn, from fewer people: a small network finds it as well.
            encoder_hidden=32 if rating else 128,
            head=(64, 32) if rating else (256, 128),
            mean_label=mean_label,
            contrast=ContrastConfig() if recipe.contrastive_weight else None,
        ),
        torch.from_numpy(workspace.source_item_codes(layout)),
    )
    for name in layout.slots:
        add_domain(ranker, workspace, layout, name)
    return ranker


def set_means(ranker: Ranker, layout: Layout, means: dict[str, np.ndarray], values: dict[str, np.ndarray]) -> None:
    """Tell the network each item's mean label, and each source item's mean value as histories hold it."""
    source = np.full((2, layout.source_rows_total), ranker.config.mean_label, np.float32)
    source[1] = float(np.mean([values[held.domain][0] for held in layout.sources]))
    for slot, name in enumerate(layout.slots):
        held = layout.source(name)
        if held is not None:
            rows = slice(held.offset + 1, held.offset + held.size)
            source[0, rows], source[1, rows] = means[name][1 : held.size], values[name][1 : held.size]
        else:
            items = ranker.owned(slot).items
            assert items is not None
            items.set_means(torch.from_numpy(means[name]))
    ranker.source_items.set_means(torch.from_numpy(source[0]))
    ranker.source_values.copy_(torch.from_numpy(source[1]))


def set_bands(ranker: Ranker, values: np.ndarray) -> None:
    """Tell a network with wide facts which bands of values there are: each value its own, or fifths of all events."""
    levels = np.unique(values)
    edges = np.full(LEVELS - 1, np.inf)
    if 1 < len(levels) <= LEVELS:
        edges[: len(levels) - 1] = (levels[1:] + levels[:-1]) / 2
    elif len(levels):
        cuts = np.unique(np.quantile(values, np.linspace(0, 1, LEVELS + 1)[1:-1]))
        edges[: len(cuts)] = cuts
    usual = np.bincount(np.searchsorted(edges, values), minlength=LEVELS) / max(len(values), 1)
    ranker.value_edges.copy_(torch.from_numpy(edges))
    ranker.usual_shares.copy_(torch.from_numpy(usual))


def searched_parameters(ranker: Ranker) -> list[torch.nn.Parameter]:
    """What descent may move: all that asks for it, but for weights that were solved for."""
    solved: set[int] = set()
    if ranker.config.wide:
        solved = {id(ranker.evidence), *(id(ranker.owned(slot).evidence) for slot in range(len(ranker.domains)))}
    return [part for part in ranker.parameters() if part.requires_grad and id(part) not in solved]


def add_domain(ranker: Ranker, workspace: Workspace, layout: Layout, name: str, *, like: int | None = None) -> int:
    """A fresh slot for a domain; sources read the backbone's item table, targets own theirs."""
    domain = workspace.domain(name)
    codes = None if layout.source(name) else torch.from_numpy(workspace.item_codes(layout, name))
    config = DomainConfig(items=0 if codes is None else len(codes), feature_codes=layout.domain_codes(domain.spec))
    return ranker.add_domain(config, codes, like=like)


def score_rows(ranker: Ranker, assembler: Any, rows: Examples, slot: int) -> np.ndarray:
    """Calibrated predictions of rows in their order, (N,)."""
    ranker.eval()
    scores = []
    with torch.inference_mode():
        for at in range(0, len(rows), 4096):
            part = rows.take(np.arange(at, min(at + 4096, len(rows))))
            scores.append(ranker.probability(assembler.batch(part, slot)).float().numpy())
    return np.concatenate(scores) if scores else np.zeros(0, np.float32)


def sample(index: np.ndarray, most: int) -> np.ndarray:
    if len(index) <= most:
        return index
    return np.sort(np.random.default_rng(0).choice(index, most, replace=False))

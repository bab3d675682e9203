"""A network for an encoder, trained on the rows of its domains; what shared training, launches and benchmarks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from domains.events.histories import ACTIONS
from models.baselines.inputs import Baseline, BaselineConfig
from models.cctl.weigher import CollaborativeTransfer
from models.layers.contrast import ContrastConfig
from models.layers.embeddings import ItemTable, RowTable
from models.layers.pyramid import PyramidConfig
from models.layers.wide import LEVELS
from models.ranker.network import DomainConfig, Ranker, RankerConfig
from models.ranker.wide_part import ClickWide, RatingWide
from models.training import loop
from models.training.devices import device_for
from models.training.distributed import Alone
from orchestrator.data.batches import BatchBuilder, DomainBatchSampler, Examples
from orchestrator.data.dataset import Workspace
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.data.target_encoding import TargetEncoding, fit_target_encoding, leave_one_out
from orchestrator.training.recipe import Recipe
from orchestrator.training.wide_fit import fit_own_wide_weights, fit_wide_weights

EVALUATED_ROWS = 50_000
"""Held-out rows of a domain that are looked at, at most."""


def fit(
    workspace: Workspace,
    recipe: Recipe,
    slots: Sequence[str],
    *,
    sample_weigher: loop.SampleWeigher | None = None,
    checkpoint_dir: Path | None = None,
    on_progress: Callable[[loop.Progress], None] | None = None,
    peers: Alone = loop.ALONE,
) -> tuple[Ranker, FeatureEncoder]:
    """A network trained on the training rows of the named domains, sources first; one slot each, in that order.

    Where ``peers`` train it together, it is whole in the first of them only.
    """
    learnt = training_set(workspace, recipe, slots)
    encoder, batch_builder = learnt.encoder, workspace.batch_builder(learnt.encoder, slots)
    ranker = new_ranker(workspace, encoder, recipe, mean_label=learnt.mean_label)
    prepare(ranker, learnt, batch_builder, seed=recipe.seed)
    if isinstance(sample_weigher, CollaborativeTransfer):
        asked = [(rows, slot) for rows, slot in learnt.train if slot in sample_weigher.config.targets and len(rows)]
        source_rows = [
            (rows, slot) for rows, slot in learnt.train if slot not in sample_weigher.config.targets and len(rows)
        ]
        sample_weigher.target_tower_from(
            DomainBatchSampler(batch_builder, asked, batch_size=recipe.fine_tune_batch_size, seed=recipe.seed),
            DomainBatchSampler(batch_builder, source_rows, batch_size=recipe.batch_size, seed=recipe.seed),
        )
    learn(
        ranker,
        learnt,
        batch_builder,
        recipe,
        parameters=searched_parameters(ranker),
        consider_start=start_of(ranker),
        auxiliary_weight=recipe.contrastive_weight,
        sample_weigher=sample_weigher,
        checkpoint_dir=checkpoint_dir,
        on_progress=on_progress,
        peers=peers,
        device=device_for(workspace.settings.device),
    )
    if ranker.embeddings.users is not None and peers.leads:
        forget_unmet_users(ranker.embeddings.users, learnt)
    return ranker.cpu().eval(), encoder


@dataclass(frozen=True)
class TrainingSet:
    """What a network of an encoder learns from.

    ``train`` and ``validation`` are rows with their slots; training rows start from their item's mean without
    themselves. ``means`` holds each domain's mean label by local item index, ``values`` the mean value of events.
    """

    encoder: FeatureEncoder
    train: list[tuple[Examples, int]]
    validation: list[tuple[Examples, int]]
    means: dict[str, np.ndarray]
    values: dict[str, np.ndarray]

    @property
    def mean_label(self) -> float:
        return float(np.concatenate([rows.label for rows, _ in self.train]).mean())


def training_set(workspace: Workspace, recipe: Recipe, slots: Sequence[str]) -> TrainingSet:
    """Training and held-out rows of the named domains, sources first; one slot each, in that order."""
    encoder = workspace.fit_encoder(
        task=recipe.task,
        slots=slots,
        lifelong=recipe.lifelong,
        short=recipe.short,
        with_users=recipe.user_embedding,
    )
    means: dict[str, TargetEncoding] = {}
    values: dict[str, np.ndarray] = {}
    train: list[tuple[Examples, int]] = []
    validation: list[tuple[Examples, int]] = []
    newest_us = None
    for slot, name in enumerate(slots):
        rows = workspace.examples(encoder, name)
        split = workspace.split(rows)
        known = rows.take(split.train)
        means[name] = fit_target_encoding(known, len(workspace.data(name).item_vocabulary), recipe.task)
        values[name] = own_values(known, len(means[name].means))
        train.append((leave_one_out(known, means[name]), slot))
        validation.append((rows.take(sample(split.validation, EVALUATED_ROWS)), slot))
        if len(known):
            newest_us = max(newest_us or 0, int(known.time_us.max()))
    encoder = encoder.model_copy(update={"trained_until_us": newest_us})
    return TrainingSet(encoder, train, validation, {name: found.means for name, found in means.items()}, values)


def prepare(ranker: Ranker, learnt: TrainingSet, batch_builder: BatchBuilder, *, seed: int) -> None:
    """Tell a fresh network the means that its wide part reads, and solve for its weights where they are solved for."""
    set_means(ranker, learnt.encoder, learnt.means, learnt.values)
    if isinstance(ranker.wide, ClickWide):
        fit_wide_weights(ranker, batch_builder, learnt.train, seed=seed)
        for rows, slot in learnt.train:
            fit_own_wide_weights(ranker, batch_builder, rows, slot, seed=seed)
    elif isinstance(ranker.wide, RatingWide):
        source_rows = [rows.value for rows, slot in learnt.train if learnt.encoder.source(learnt.encoder.slots[slot])]
        set_bands(ranker.wide, np.concatenate(source_rows))
        fit_wide_weights(ranker, batch_builder, learnt.train, seed=seed)


def learn(
    network: torch.nn.Module,
    learnt: TrainingSet,
    batch_builder: BatchBuilder,
    recipe: Recipe,
    *,
    auxiliary_weight: float,
    parameters: Sequence[torch.nn.Parameter] | None = None,
    consider_start: bool | Literal["surely"] = False,
    sample_weigher: loop.SampleWeigher | None = None,
    checkpoint_dir: Path | None = None,
    on_progress: Callable[[loop.Progress], None] | None = None,
    peers: Alone = loop.ALONE,
    device: str | None = None,
) -> loop.TrainResult:
    """Train a network, ours or a baseline, on its training set as the recipe says."""
    share = (peers.rank, peers.world)
    held = [part for part in learnt.validation if len(part[0])]
    validation = DomainBatchSampler(batch_builder, held, batch_size=4096, seed=0, shuffle=False, share=share)
    return loop.train(
        network,
        DomainBatchSampler(batch_builder, learnt.train, batch_size=recipe.batch_size, seed=recipe.seed, share=share),
        config=train_config(
            recipe,
            auxiliary_weight=auxiliary_weight,
            consider_start=consider_start,
            device=peers.device if peers.world > 1 else device,
        ),
        validation=validation if len(validation) else None,
        checkpoint_dir=checkpoint_dir,
        on_progress=on_progress,
        parameters=parameters,
        sample_weigher=sample_weigher,
        peers=peers,
    )


def train_config(recipe: Recipe, **changes: Any) -> loop.TrainConfig:
    """How a recipe trains: as shared training does, but for ``changes`` (attributes of `TrainConfig`)."""
    config = loop.TrainConfig(
        task=recipe.task,
        epochs=recipe.epochs,
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        patience=recipe.patience,
        auxiliary_weight=recipe.contrastive_weight,
        seed=recipe.seed,
        checkpoint_every_steps=recipe.checkpoint_every_steps,
        prefetch=2,
        bf16=recipe.bf16,
    )
    return replace(config, **changes)


def forget_unmet_users(users: RowTable, learnt: TrainingSet) -> None:
    """A user whom training never met must be read as unknown, not as the noise that their row started from."""
    unmet = np.ones(learnt.encoder.users, bool)
    unmet[np.concatenate([rows.user[rows.user < learnt.encoder.users] for rows, _ in learnt.train])] = False
    with torch.no_grad():
        users.weight[torch.from_numpy(unmet)] = users.weight[0].clone()


def new_baseline(
    make: Callable[[BaselineConfig, torch.Tensor | None], Baseline],
    encoder: FeatureEncoder,
    recipe: Recipe,
    *,
    source: ItemTable,
    own: Sequence[ItemTable | None],
    source_values: torch.Tensor,
    mean_label: float,
) -> Baseline:
    """A fresh baseline that reads what the ranker reads: the same items with the same means, as wide, with the same
    head.

    Args:
        source: the source items, their codes and means; ``own`` those of each slot, None where they are source items.
    """
    torch.manual_seed(recipe.seed)
    tables = [source, *(items for items in own if items is not None)]
    baseline = make(
        BaselineConfig(
            source_items=len(source),
            domain_items=tuple(0 if items is None else len(items) for items in own),
            item_fields=tuple(field.size for field in encoder.item_fields),
            user_fields=tuple(field.size for field in encoder.user_fields),
            context_fields=tuple(field.size for field in encoder.context_fields),
            actions=len(ACTIONS),
            users=encoder.users,
            width=recipe.width,
            hidden=recipe.head,
            short=encoder.short,
            mean_label=mean_label,
            task=recipe.task,
        ),
        torch.cat([items.codes for items in tables]) if encoder.item_fields else None,
    )
    baseline.inputs.set_means(torch.cat([items.means for items in tables]), source_values)
    return baseline


def new_ranker(workspace: Workspace, encoder: FeatureEncoder, recipe: Recipe, *, mean_label: float) -> Ranker:
    """A fresh network for an encoder, with a slot for each of its domains."""
    torch.manual_seed(recipe.seed)
    rating = recipe.task == "rating"
    ranker = Ranker(
        RankerConfig(
            source_items=encoder.source_rows_total,
            item_fields=tuple(field.size for field in encoder.item_fields),
            user_fields=tuple(field.size for field in encoder.user_fields),
            context_fields=tuple(field.size for field in encoder.context_fields),
            domain_fields=tuple(field.size for field in encoder.domain_fields),
            users=encoder.users,
            width=recipe.width,
            actions=len(ACTIONS),
            task=recipe.task,
            architecture=recipe.architecture,
            pyramid=pyramid_of(recipe),
            wide=rating or _wide(workspace, encoder, recipe),
            encoder_hidden=32 if rating else 128,
            head=recipe.head,
            mean_label=mean_label,
            contrast=ContrastConfig() if recipe.contrastive_weight else None,
        ),
        torch.from_numpy(workspace.source_item_codes(encoder)),
    )
    for name in encoder.slots:
        add_domain(ranker, workspace, encoder, name)
    return ranker


def pyramid_of(recipe: Recipe) -> PyramidConfig:
    """The pyramid that a recipe names, or that fits its architecture and the length of its histories."""
    usual, none = PyramidConfig.named("LCN-200-50"), PyramidConfig(levels=())
    if recipe.pyramid == "auto":
        return none if recipe.architecture == "dacdr+lcn" and recipe.lifelong <= usual.k1 else usual
    return none if recipe.pyramid == "none" else PyramidConfig.named(recipe.pyramid)


def _wide(workspace: Workspace, encoder: FeatureEncoder, recipe: Recipe) -> bool:
    """Whether the wide part of clicks is solved for: by default where all of them come of finer values, as of stars."""
    specs = [workspace.domain(name).spec for name in encoder.slots]
    return recipe.wide_features == "many" or (
        recipe.wide_features == "auto" and all(spec.interactions.positive_above is not None for spec in specs)
    )


def set_means(
    ranker: Ranker, encoder: FeatureEncoder, means: dict[str, np.ndarray], values: dict[str, np.ndarray]
) -> None:
    """Tell the network each item's mean label, and each source item's mean value as histories hold it."""
    source = np.full((2, encoder.source_rows_total), ranker.config.mean_label, np.float32)
    source[1] = float(np.mean([values[held.domain][0] for held in encoder.sources]))
    slots = np.full(encoder.source_rows_total, -1)
    for slot, name in enumerate(encoder.slots):
        held = encoder.source(name)
        if held is not None:
            rows = slice(held.offset + 1, held.offset + held.size)
            source[0, rows], source[1, rows] = means[name][1 : held.size], values[name][1 : held.size]
            slots[rows] = slot
        else:
            set_own_means(ranker, slot, means[name], values.get(name, np.full(len(means[name]), source[1, 0])))
    ranker.embeddings.source_items.set_means(torch.from_numpy(source[0]))
    ranker.wide.source_values.copy_(torch.from_numpy(source[1]))
    if isinstance(ranker.wide, ClickWide):
        ranker.wide.source_slot.copy_(torch.from_numpy(slots))


def set_own_means(ranker: Ranker, slot: int, means: np.ndarray, values: np.ndarray) -> None:
    """Tell a domain with items of its own each item's mean label, and the mean value of its events."""
    owned = ranker.owned(slot)
    assert owned.items is not None, "a target domain owns its items"
    owned.items.set_means(torch.from_numpy(means))
    if owned.values is not None:
        owned.values.copy_(torch.from_numpy(values))


def own_values(known: Examples, size: int) -> np.ndarray:
    """Mean value of the events of each item of a domain, as histories hold values, (size,)."""
    return fit_target_encoding(replace(known, label=known.value), size, "rating").means


def set_bands(wide: RatingWide, values: np.ndarray) -> None:
    """Tell the wide part of ratings which bands of values there are: each value its own, or fifths of all events."""
    levels = np.unique(values)
    edges = np.full(LEVELS - 1, np.inf)
    if 1 < len(levels) <= LEVELS:
        edges[: len(levels) - 1] = (levels[1:] + levels[:-1]) / 2
    elif len(levels):
        cuts = np.unique(np.quantile(values, np.linspace(0, 1, LEVELS + 1)[1:-1]))
        edges[: len(cuts)] = cuts
    usual = np.bincount(np.searchsorted(edges, values), minlength=LEVELS) / max(len(values), 1)
    wide.value_edges.copy_(torch.from_numpy(edges))
    wide.usual_shares.copy_(torch.from_numpy(usual))


def start_of(ranker: Ranker) -> bool | Literal["surely"]:
    """How training treats the weights that a network starts with: solved weights of ratings are hard to better."""
    return "surely" if isinstance(ranker.wide, RatingWide) else ranker.wide.solved


def searched_parameters(ranker: Ranker) -> list[torch.nn.Parameter]:
    """What descent may move: all that asks for it, but for weights that were solved for."""
    solved: set[int] = set()
    if ranker.wide.solved:
        own = (ranker.owned(slot).wide_weights for slot in range(len(ranker.domains)))
        solved = {id(ranker.wide.weights), *map(id, own)}
    return [part for part in ranker.parameters() if part.requires_grad and id(part) not in solved]


def add_domain(
    ranker: Ranker, workspace: Workspace, encoder: FeatureEncoder, name: str, *, like: int | None = None
) -> int:
    """A fresh slot for a domain; sources read the backbone's item table, targets own theirs."""
    domain = workspace.domain(name)
    codes = None if encoder.source(name) else torch.from_numpy(workspace.item_codes(encoder, name))
    config = DomainConfig(items=0 if codes is None else len(codes), feature_codes=encoder.domain_codes(domain.spec))
    return ranker.add_domain(config, codes, like=like)


def sample(index: np.ndarray, most: int) -> np.ndarray:
    if len(index) <= most:
        return index
    return np.sort(np.random.default_rng(0).choice(index, most, replace=False))

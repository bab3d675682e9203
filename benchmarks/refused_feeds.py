"""What a model may learn from where feeds lie, and what a target-only tower leaves of it: feeds of low weight are
refused whole.

A weight on a row's loss holds back what the row teaches. But a source's events also stand in users' histories and in
items' means, and there a lie goes on being heard. So feeds whose rows weigh less than half leave altogether; then a new
target-only tower, which no longer hears them, looks at the rest, until it refuses nothing more. Where all feeds of a
source are
refused, its rows no longer teach, but histories keep its events: a network that sees whose they are can read them
turned round.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks.injected_harm import KINDS, HarmedWorkspace
from models.batch import Batch
from models.cctl.config import TransferConfig, TransferReport
from models.cctl.weigher import CollaborativeTransfer
from models.training.loop import TrainConfig
from models.training.optimisers import Optimisers
from orchestrator.data.batches import BatchBuilder, DomainBatchSampler, Examples
from orchestrator.data.encoding import FeatureEncoder
from orchestrator.data.target_encoding import TargetEncoding, fit_target_encoding, leave_one_out
from orchestrator.training.fit import new_ranker, set_means
from orchestrator.training.recipe import Recipe

TARGET_BATCH = 128
REFUSED = 0.5
"""Mean weight of a feed's rows below which nothing of it is taken."""
LOOKS = 4

Feed = tuple[str, int]
"""A source and the number of a feed that fills it."""


@dataclass(frozen=True)
class Given:
    """What a model may be trained on: rows by slot, sources first, the target last; ``asked`` has no labels."""

    workspace: HarmedWorkspace
    encoder: FeatureEncoder
    batch_builder: BatchBuilder
    recipe: Recipe
    means: dict[str, TargetEncoding]
    values: dict[str, np.ndarray]
    parts: tuple[Examples, ...]
    validation: Examples
    asked: Examples
    refused_sources: frozenset[str] = frozenset()
    """Sources whose rows nothing is trained on."""
    memory: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def target(self) -> int:
        return len(self.parts) - 1

    @property
    def training_sources(self) -> tuple[tuple[Examples, int], ...]:
        """Rows of each source that is trained on, with its slot."""
        return tuple(
            (part, slot) for slot, part in enumerate(self.parts[:-1]) if part.domain not in self.refused_sources
        )


def gathered(workspace: HarmedWorkspace, recipe: Recipe, names: Sequence[str]) -> tuple[Given, Examples]:
    """What there is to train on, and the test rows with their labels. The target is the last of ``names``."""
    encoder = workspace.fit_encoder(
        task="ctr", slots=names, lifelong=recipe.lifelong, short=recipe.short, with_users=False
    )
    rows = workspace.examples(encoder, names[-1])
    split = workspace.split(rows)
    workspace = replace(workspace, until_us=split.cut_us)
    means, values, parts = {}, {}, []
    for one in names:
        own = workspace.examples(encoder, one)
        known = own.take(workspace.split(own).train)
        means[one] = fit_target_encoding(known, len(workspace.data(one).item_vocabulary), "ctr")
        values[one] = fit_target_encoding(replace(known, label=known.value), len(means[one].means), "rating").means
        parts.append(leave_one_out(known, means[one]))
    test = rows.take(split.test)
    nothing = np.full(len(test), np.nan, np.float32)
    given = Given(
        workspace,
        encoder,
        workspace.batch_builder(encoder, names),
        recipe,
        means,
        values,
        tuple(parts),
        rows.take(split.validation),
        replace(test, label=nothing, value=nothing),
    )
    return given, test


def without(given: Given, refused: Iterable[tuple[str, int]]) -> Given:
    """The same, where nothing is taken of feeds of sources: no row, no share in a mean, no event of a history."""
    workspace = replace(given.workspace, refused=given.workspace.refused | set(refused))
    return replace(gathered(workspace, given.recipe, given.encoder.slots)[0], refused_sources=given.refused_sources)


@dataclass(frozen=True)
class SourceCheck:
    """What target-only towers say of feeds before anything is trained.

    ``left`` is what is left to learn from, ``last`` what the last target-only tower knows of it
    (`CollaborativeTransfer.judged`), ``first`` the first look's report, ``certainties`` how sure each target-only
    tower was of its target.
    """

    left: Given
    last: Any
    first: TransferReport
    certainties: tuple[float, ...]

    @property
    def refused(self) -> frozenset[Feed]:
        return self.left.workspace.refused


def check_sources(given: Given, config: TransferConfig) -> SourceCheck:
    """Look, leave out the feeds that are refused, and look again at the rest until nothing more is."""
    key = f"checked {config}"
    if key not in given.memory:
        left, looks, last, certainties = given, list[TransferReport](), None, list[float]()
        while len(looks) < LOOKS and left.training_sources:
            transfer = transfer_of(left, config, epoch_of(left, [(left.parts[-1], left.target)], TARGET_BATCH))
            model, rate = network(left), given.recipe.learning_rate
            training = TrainConfig(learning_rate=rate, seed=given.recipe.seed)
            looks.append(transfer.judge(model, Optimisers(model, learning_rate=rate), training))
            certainties.append(looks[-1].target or 0.0)
            weights = feed_weights(left, transfer)
            light = [feed for feed, weight in weights.items() if weight < REFUSED]
            last = None if light else transfer.judged
            if not light:
                break
            wholly = {source for source, _ in light} - {source for source, _ in weights.keys() - set(light)}
            left = replace(left, refused_sources=left.refused_sources | wholly)
            left = without(left, [feed for feed in light if feed[0] not in wholly])
        given.memory[key] = SourceCheck(left, last, looks[0], tuple(certainties))
    return given.memory[key]


def transfer_of(
    given: Given, config: TransferConfig, own: DomainBatchSampler, held: Sequence[Batch] = ()
) -> CollaborativeTransfer:
    """What weighs source rows: it knows their feeds, by the bookkeeping or as their items' feature."""
    asks = None if given.workspace.by == "item" else partial(feeds_of, given)
    transfer = CollaborativeTransfer(replace(config, targets=(given.target,)), held, asks)
    if config.mode == "influence":
        transfer.target_tower_from(own, epoch_of(given, list(given.training_sources), 1024))
    return transfer


def feeds_of(given: Given, batch: Batch) -> torch.Tensor:
    """Codes of the feeds that source rows came through, (B, 1): what the bookkeeping knows of them, and no network."""
    slots = batch.domain.numpy()
    codes = np.zeros(len(batch), np.int64)
    for slot in np.unique(slots):
        mine, name = slots == slot, given.encoder.slots[slot]
        source = given.encoder.source(name)
        assert source is not None
        event = (batch.user.numpy()[mine], batch.item.numpy()[mine] - source.offset, batch.time.numpy()[mine])
        codes[mine] = 1 + given.workspace.feeds(name, *event)
    return torch.from_numpy(codes[:, None])


def feed_weights(given: Given, transfer: CollaborativeTransfer) -> dict[Feed, float]:
    """Mean weight of the rows of each feed as things stand."""
    found: dict[Feed, float] = {}
    for part, slot in given.training_sources:
        if not len(part):
            continue
        rows = part.take(np.random.default_rng(0).permutation(len(part))[:8_192])
        batches = epoch_of(given, [(rows, slot)], 4_096, shuffle=False).batches(0)
        weight = torch.cat([transfer.weights_of(batch) for batch in batches]).numpy()
        feeds = given.workspace.feeds(rows.domain, rows.user, rows.item, rows.time_us)
        found |= {(rows.domain, feed): float(weight[feeds == feed].mean()) for feed in np.unique(feeds).tolist()}
    return found


def described(
    given: Given, transfer: CollaborativeTransfer | None, left: Given, check: SourceCheck | None
) -> dict[str, Any]:
    """Weights of feeds at the end, by kind and over time, verdicts on sources, and which feeds were refused.

    Args:
        given: what there was before any feed was refused.
        transfer: what weighed the rows of ``left``; None where nothing was left to weigh.
    """
    names = given.encoder.slots
    weights = dict.fromkeys(left.workspace.refused, 0.0)
    detail: dict[str, Any] = {"verdicts": {}, "influence": {}, "percentiles": []}
    if transfer is not None:
        report = transfer.report()
        weights |= feed_weights(left, transfer)
        detail["gain"] = _late([row["gain"] for row in report.windows])
        detail["frozen_windows"] = sum(row["frozen"] for row in report.windows)
        detail["percentiles"] = [{**row, "source": names[row["source"]]} for row in report.weights]
        detail["target_tower_certainty"] = report.target
    verdicts = check.first.verdicts if check is not None else transfer.report().verdicts if transfer else {}
    for slot, verdict in verdicts.items():
        detail["verdicts"][names[slot]] = verdict.borrow and names[slot] not in left.refused_sources
        detail["influence"][names[slot]] = [verdict.influence, verdict.certainty]
    if check is not None:
        detail["target_tower_certainties"] = check.certainties
    by_kind: dict[str, list[tuple[float, int]]] = {}
    for part, _ in given.training_sources:
        feeds = given.workspace.feeds(part.domain, part.user, part.item, part.time_us)
        for feed, rows in enumerate(np.bincount(feeds).tolist()):
            if rows:
                kind = KINDS[given.workspace.kind_of_feed(part.domain, feed)]
                weight = 0.0 if part.domain in left.refused_sources else weights[part.domain, feed]
                by_kind.setdefault(kind, []).append((weight, rows))
    detail["weights"] = {
        kind: sum(weight * rows for weight, rows in held) / sum(rows for _, rows in held)
        for kind, held in by_kind.items()
    }
    detail["feeds"] = {kind: len(held) for kind, held in by_kind.items()}
    detail["feeds_below_half"] = {kind: sum(w < REFUSED for w, _ in held) for kind, held in by_kind.items()}
    return detail


def _late(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known[len(known) // 2 :])) if known else None


def network(given: Given) -> Any:
    torch.manual_seed(given.recipe.seed)
    labels = np.concatenate([part.label for part in given.parts])
    ranker = new_ranker(given.workspace, given.encoder, given.recipe, mean_label=float(labels.mean()))
    set_means(ranker, given.encoder, {name: one.means for name, one in given.means.items()}, given.values)
    return ranker


def epoch_of(given: Given, parts: list[tuple[Examples, int]], size: int, *, shuffle: bool = True) -> DomainBatchSampler:
    filled = [part for part in parts if len(part[0])]
    return DomainBatchSampler(given.batch_builder, filled, batch_size=size, seed=given.recipe.seed, shuffle=shuffle)

"""The papers' bridges on rating rows: batches are made once, epochs are chosen on held-out rows.

CMF and EMCDR stand here a second time with factors solved for by alternating ridge regressions: on sets of this size
these are stronger than factors found by descent, and a baseline should be met at its best.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.baselines import BRIDGES
from benchmarks.baselines.factors import BridgeConfig, latest_liked
from models.baselines.plain import BiasedFactors, Rows
from models.batch import Batch, Events
from models.training.loop import TrainConfig, predict
from orchestrator.data.batches import BatchBuilder, Examples, empty_events
from orchestrator.data.encoding import FeatureEncoder

TARGET_SLOT = 1
LIKED_ABOVE = 3.0
HISTORY = 20
"""Liked source events that a bridge reads, as in PTUPCDR's own protocol."""
WARM_SHARE = 0.05
"""Of the target rows that teach, held out to choose the epochs of the target's factors."""


@dataclass(frozen=True)
class BridgeData:
    """Code books, batch builder and the size of the target's item table."""

    encoder: FeatureEncoder
    batch_builder: BatchBuilder
    target_items: int


class Ready:
    """Rows as batches that are made once; each epoch walks them in another seeded order: a ``BatchSource``.

    Of a history a batch keeps what bridges read: the latest ``HISTORY`` events that the user liked.
    """

    def __init__(
        self, data: BridgeData, rows: Examples, slot: int, *, size: int, seed: int, shuffle: bool = True
    ) -> None:
        self._seed, self._shuffle = seed, shuffle
        order = np.random.default_rng(seed).permutation(len(rows)) if shuffle else np.arange(len(rows))
        self._batches = [
            _as_read(data.batch_builder.batch(rows.take(order[at : at + size]), slot))
            for at in range(0, len(rows), size)
        ]

    def __len__(self) -> int:
        return len(self._batches)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        order = np.arange(len(self))
        if self._shuffle:
            order = np.random.default_rng([self._seed, epoch]).permutation(order)
        for position in order[start:]:
            yield self._batches[position]


def _as_read(batch: Batch) -> Batch:
    """The batch with the latest likes alone, and with none where the row is the source's own."""
    if not bool((batch.domain == TARGET_SLOT).any()):
        return replace(batch, lifelong=empty_events(len(batch)), short_source=None, short_target=None)
    items, liked = latest_liked(batch.lifelong, LIKED_ABOVE, HISTORY)
    count, width = items.shape
    nothing = torch.zeros(1, dtype=torch.long).expand(count, width)
    likes = Events(
        item=items.flip(1),  # oldest first, and what is no like stands before
        action=nothing,
        value=liked.flip(1) * (LIKED_ABOVE + 1),
        time=nothing,
        row=torch.arange(count),
        start=width - liked.sum(1),
        stop=torch.full((count,), width),
    )
    return replace(batch, lifelong=likes, short_source=None, short_target=None)


@dataclass(frozen=True)
class BridgeRows:
    """Batches of one draw that all bridges share: ``source`` and ``target`` to learn from.

    ``held`` are rows to choose epochs by: ``source`` and ``target`` rows of known users, and ``cold``, target rows of
    users who are hidden from training. ``asked`` are the test rows in their order.
    """

    config: BridgeConfig
    source: Ready
    target: Ready
    held: Mapping[str, Ready]
    asked: Ready


def bridge_rows(
    data: BridgeData,
    *,
    source: Examples,
    source_validation: Examples,
    train: Examples,
    validation: Examples,
    asked: Examples,
    seed: int,
    width: int,
    batch_size: int,
) -> BridgeRows:
    """Make the batches; no label of ``asked`` is in them."""
    warm = np.random.default_rng(seed).random(len(train)) < WARM_SHARE
    config = BridgeConfig(
        users=data.encoder.users,
        source_items=data.encoder.source_rows_total,
        target_items=data.target_items,
        width=width,
        target_slot=TARGET_SLOT,
        source_mean=float(source.label.mean()),
        target_mean=float(train.label.mean()),
        positive_above=LIKED_ABOVE,
        history=HISTORY,
    )
    queries = replace(asked, label=np.zeros(len(asked), np.float32))
    return BridgeRows(
        config,
        Ready(data, source, 0, size=batch_size, seed=seed),
        Ready(data, train.take(~warm), 1, size=batch_size, seed=seed),
        {
            "source": Ready(data, source_validation, 0, size=4096, seed=0),
            "target": Ready(data, train.take(warm), 1, size=4096, seed=0),
            "cold": Ready(data, validation, 1, size=4096, seed=0),
        },
        Ready(data, queries, 1, size=4096, seed=0, shuffle=False),
    )


def fit_bridge(
    name: str, rows: BridgeRows, *, seed: int, choose_epochs: bool = True, **settings: Any
) -> tuple[np.ndarray, dict[str, Any]]:
    """Scores of the asked rows, and facts of the model.

    Args:
        choose_epochs: keep the epoch that is best on held rows; otherwise the last one, as the papers' code does.
        settings: of the training (``TrainConfig``).
    """
    torch.manual_seed(seed)
    model = BRIDGES[name](rows.config)
    results = model.fit(
        rows.source,
        rows.target,
        config=TrainConfig(task="rating", seed=seed, **settings),
        validation=rows.held if choose_epochs else None,  # type: ignore[arg-type]
    )
    told = predict(model, rows.held["cold"].batches(0), task="rating")
    detail = {
        "validation_rmse": float(np.sqrt(np.square(np.clip(told["score"], 1, 5) - told["label"]).mean())),
        "epochs": {stage: result.best_epoch for stage, result in results.items()},
        "parameters": sum(part.numel() for part in model.parameters()),
    }
    return predict(model, rows.asked.batches(0), task="rating")["score"], detail


RIDGES = (5.0, 20.0)
MAP_RIDGES = (1.0, 10.0, 100.0, 1000.0)


def ridge_cmf(
    *, source: Examples, train: Examples, validation: Examples, asked: Examples, seed: int, width: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """CMF by ridge regressions: source items are further columns. The ridge is chosen on ``validation``."""
    source_rows = Rows.of(source.user, source.item, source.label)
    found = []
    for ridge in RIDGES:
        model = BiasedFactors(width=width, ridge=ridge, seed=seed, pool_source=True)
        model.fit(train.user, train.item, train.label, source=source_rows)
        found.append((_rmse(model.predict(validation.user, validation.item), validation), ridge, model))
    error, ridge, model = min(found, key=lambda one: one[0])
    return model.predict(asked.user, asked.item), {"validation_rmse": error, "ridge": ridge}


def ridge_emcdr(
    *, source: Examples, train: Examples, validation: Examples, asked: Examples, seed: int, width: int
) -> tuple[np.ndarray, dict[str, Any]]:
    """EMCDR by ridge regressions: the factors of each domain, and a linear map of users' biases and factors.

    The map is fitted by the error of the ratings that shared users gave, as TMCDR argues: target vectors of users with
    three ratings are mostly shrinkage, and a map fitted to these learns the shrinkage. Ridges are chosen together on
    ``validation``.
    """
    found = []
    for ridge in RIDGES:
        source_rows = BiasedFactors(width=width, ridge=ridge, seed=seed).fit(source.user, source.item, source.label)
        own = BiasedFactors(width=width, ridge=ridge, seed=seed).fit(train.user, train.item, train.label)
        users = int(max(part.user.max() for part in (source, train, validation, asked))) + 1
        # Users without source rows are nobody: their vector is zero, and so is what it is mapped to.
        seen = np.isin(np.arange(users), source.user)[:, None] * np.hstack(
            [np.ones((users, 1)), _vectors(source_rows, users)]
        )
        shared = train.take(np.isin(train.user, source.user))
        x = _pairs(own, seen, shared)
        gram, moment = x.T @ x, x.T @ (shared.label - _item_part(own, shared))
        for penalty in MAP_RIDGES:
            mapping = np.linalg.solve(gram + penalty * np.eye(len(gram)), moment)
            told, score = (_item_part(own, rows) + _pairs(own, seen, rows) @ mapping for rows in (validation, asked))
            found.append((_rmse(told, validation), ridge, penalty, score))
    error, ridge, penalty, score = min(found, key=lambda one: one[0])
    return score, {"validation_rmse": error, "ridge": ridge, "map_ridge": penalty}


def _vectors(model: BiasedFactors, users: int) -> np.ndarray:
    """Bias and factors of each user, (users, 1 + width); zeros for users beyond the model's."""
    own = np.hstack([model.user_bias[:, None], model.user_factors])
    return np.vstack([own, np.zeros((max(0, users - len(own)), own.shape[1]))])[:users]


def _item_part(model: BiasedFactors, rows: Examples) -> np.ndarray:
    """What is expected of the item alone, (N,)."""
    return model.mean + np.append(model.item_bias, 0.0)[np.minimum(rows.item, len(model.item_bias))]


def _pairs(model: BiasedFactors, users: np.ndarray, rows: Examples) -> np.ndarray:
    """Each entry of the user's vector times each of [1, item factors], (N, entries * (1 + width))."""
    factors = np.vstack([model.item_factors, np.zeros((1, model.width))])[np.minimum(rows.item, len(model.item_bias))]
    item = np.hstack([np.ones((len(rows), 1)), factors])
    return (users[rows.user][:, :, None] * item[:, None, :]).reshape(len(rows), -1)


def _rmse(score: np.ndarray, rows: Examples) -> float:
    return float(np.sqrt(np.square(np.clip(score, 1, 5) - rows.label).mean()))

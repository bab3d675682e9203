"""Fine-tuning: fit what one domain owns on its rows, and its calibrator; the rest of the network stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from models.ranker import adapters
from models.ranker.network import Ranker
from models.ranker.precompute import frozen_cache
from models.training import loop
from models.training.devices import device_for
from orchestrator.data.batches import BatchBuilder, DomainBatchSampler, Examples
from orchestrator.data.scoring import outputs
from orchestrator.data.target_encoding import fit_target_encoding, leave_one_out
from orchestrator.settings import Settings
from orchestrator.training.fit import own_values, searched_parameters, set_own_means, start_of, train_config
from orchestrator.training.recipe import Recipe
from orchestrator.training.wide_fit import fit_own_wide_weights

FROZEN_CACHE_BYTES = 1 << 30
"""Room for the frozen-activation cache, where nothing else is asked for."""
FEWEST_TO_CALIBRATE = 20
"""Held-out rows of each label from which a calibrator of clicks is fitted."""


def fit_adapter(
    ranker: Ranker,
    slot: int,
    recipe: Recipe,
    batch_builder: BatchBuilder,
    known: Examples,
    *,
    validation: Examples,
    checkpoint_dir: Path | None = None,
    on_progress: Callable[[loop.Progress], None] | None = None,
    frozen_cache_bytes: int = FROZEN_CACHE_BYTES,
    device: str = "cpu",
) -> loop.TrainResult:
    """Train what the domain in this slot owns on its known rows, and fit its calibrator; leaves the rest frozen.

    Args:
        frozen_cache_bytes: room for the frozen-activation cache, which is made once for all epochs.
        device: where to train; the ranker is on the CPU afterwards.
    """
    items = ranker.owned(slot).items
    assert items is not None, "a target domain owns its items"
    means = fit_target_encoding(known, len(items), ranker.config.task)
    set_own_means(ranker, slot, means.means, own_values(known, len(items)))
    learnt = leave_one_out(known, means)
    adapters.freeze_all_but(ranker, slot)
    items.rows.weight.requires_grad_(recipe.fine_tune_items)
    if ranker.wide.solved:
        fit_own_wide_weights(ranker, batch_builder, learnt, slot, seed=recipe.seed)
    data = DomainBatchSampler(
        batch_builder, [(learnt, slot)], batch_size=recipe.fine_tune_batch_size, seed=recipe.seed, first_key=0
    )
    held_out = DomainBatchSampler(
        batch_builder, [(validation, slot)], batch_size=4096, seed=0, shuffle=False, first_key=len(learnt)
    )
    ranker.to(device)
    every_row = chain(data.each_row_once(), held_out.each_row_once())
    cache = frozen_cache(ranker, every_row, len(learnt) + len(validation), limit=frozen_cache_bytes)
    with ranker.using(cache):
        result = loop.train(
            ranker,
            data,
            config=train_config(
                recipe,
                task=ranker.config.task,
                epochs=recipe.fine_tune_epochs,
                learning_rate=recipe.fine_tune_learning_rate,
                patience=max(recipe.patience, 1),
                consider_start=start_of(ranker) or True,
                device=device,
            ),
            validation=held_out if len(validation) else None,
            checkpoint_dir=checkpoint_dir,
            on_progress=on_progress,
            parameters=searched_parameters(ranker),
        )
    ranker.cpu()
    if len(validation) and not ranker.wide.solved:
        # Wide weights are solved for on many more users than are held out here: a map fitted to these adds noise.
        calibrate(ranker, slot, outputs(ranker.eval(), batch_builder, validation, slot), validation.label)
    return result


def on_this_machine(settings: Settings) -> dict[str, Any]:
    """What `fit_adapter` is told of where it runs."""
    return {"device": device_for(settings.device), "frozen_cache_bytes": settings.frozen_cache_mb << 20}


def calibrate(ranker: Ranker, slot: int, score: np.ndarray, label: np.ndarray) -> None:
    """Fit the domain's calibrator on held-out rows."""
    calibrator = ranker.owned(slot).calibrator
    scale, shift = calibration(ranker.config.task, score, label)
    with torch.no_grad():
        calibrator.scale.fill_(scale)
        calibrator.shift.fill_(shift)


def calibration(task: str, score: np.ndarray, label: np.ndarray) -> tuple[float, float]:
    """Scale and shift of scores that fit held-out rows: Platt scaling for clicks, an affine map for ratings.

    A slope that is not positive would turn the ranking round; then only the shift of ratings is fitted. Too few rows of
    either label would send the slope of clicks anywhere; then outputs stay as they are.
    """
    if task == "ctr":
        if min((label > 0).sum(), (label <= 0).sum()) < FEWEST_TO_CALIBRATE:
            return 1.0, 0.0
        fit = LogisticRegression(C=1e4).fit(score[:, None], label)
        scale, shift = float(fit.coef_[0, 0]), float(fit.intercept_[0])
        return (scale, shift) if scale > 0 else (1.0, 0.0)
    scale, shift = (float(value) for value in np.polyfit(score, label, 1)) if score.std() > 1e-6 else (0.0, 0.0)
    return (scale, shift) if scale > 0 else (1.0, float(label.mean() - score.mean()))

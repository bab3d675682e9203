"""Closed-form fit of the wide part: ridge regression for ratings, logistic regression for clicks.

Labels of cold users are told mostly by few wide features (`models.layers.wide`), and the warm users who teach their
weights may be a few hundred. So these weights are not left to gradient descent: a ridge regression has one solution,
and whole users left out of it choose how much to shrink the finer features. The network then learns only what is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import expit

from models.layers.wide import FIRM_FEATURES
from models.ranker.network import Ranker
from orchestrator.data.batches import BatchBuilder, Examples

PENALTIES = (100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 100_000.0, 1e9)
"""Ridges on standardised features that are tried; the last leaves a feature out."""
FIRM_PENALTY = 10.0
FOLDS = 5
NEWTON_STEPS = 8
ROWS_AT_MOST = 400_000


def fit_wide_weights(
    ranker: Ranker, batch_builder: BatchBuilder, parts: Sequence[tuple[Examples, int]], *, seed: int
) -> None:
    """Solve for the shared weights of the features on training rows of several domains, each with its slot."""
    features, expected, label, user = _gather(ranker, batch_builder, parts, seed)
    if ranker.config.task == "ctr":
        found = solve_clicks(features, expected, label, user, seed=seed)
    else:
        found = solve(features, label - expected, user, seed=seed)
    with torch.no_grad():
        ranker.wide.weights.add_(torch.from_numpy(found).to(ranker.wide.weights))


def fit_own_wide_weights(ranker: Ranker, batch_builder: BatchBuilder, rows: Examples, slot: int, *, seed: int) -> None:
    """Solve for what a domain's own weights add to the shared ones, often nothing, on its training rows."""
    features, expected, label, user = _gather(ranker, batch_builder, [(rows, slot)], seed)
    own = ranker.owned(slot).wide_weights
    if ranker.config.task == "ctr":
        found = solve_clicks(features, expected, label, user, seed=seed, penalties=PENALTIES)
    else:
        found = solve(features, label - expected, user, seed=seed, firm=PENALTIES)
    with torch.no_grad():
        own.add_(torch.from_numpy(found).to(own))


def solve(
    features: np.ndarray, target: np.ndarray, user: np.ndarray, *, seed: int, firm: Sequence[float] = (FIRM_PENALTY,)
) -> np.ndarray:
    """Ridge weights of raw features, chosen by held-out users; zeros where rows of known users are too few.

    Shapes: features (N, F), of which the first says whether there are any; target (N,); user (N,); returns (F,).

    Args:
        firm: ridges to try on the first features; where one is tried that leaves them out, nothing may be the answer.
    """
    seen = features[:, 0] > 0
    features, target, user = features[seen].astype(np.float64), target[seen].astype(np.float64), user[seen]
    people, person = np.unique(user, return_inverse=True)
    if len(people) < 2 * FOLDS:
        return np.zeros(features.shape[1])
    standard, centre, scale = _standardised(features)
    fold = np.random.default_rng(seed).integers(0, FOLDS, len(people))[person]
    grams = [standard[fold == part].T @ standard[fold == part] for part in range(FOLDS)]
    sums = [standard[fold == part].T @ target[fold == part] for part in range(FOLDS)]

    def weights(without: int | None, ridges: tuple[float, float]) -> np.ndarray:
        used = [part for part in range(FOLDS) if part != without]
        ridge = np.full(features.shape[1], ridges[1])
        ridge[:FIRM_FEATURES] = ridges[0]
        gram = np.sum([grams[part] for part in used], axis=0)
        return np.linalg.solve(gram + np.diag(ridge), np.sum([sums[part] for part in used], axis=0))

    def error(ridges: tuple[float, float]) -> float:
        """Squared error of held-out users, less what the target's own squares are, which all ridges share."""
        held = [weights(part, ridges) for part in range(FOLDS)]
        return float(sum(w @ grams[part] @ w - 2 * w @ sums[part] for part, w in enumerate(held)))

    tried = [(first, rest) for first in firm for rest in PENALTIES if rest >= first]
    best = weights(None, min(tried, key=error)) / scale
    best[0] -= centre @ best
    return best


def solve_clicks(
    features: np.ndarray,
    expected: np.ndarray,
    label: np.ndarray,
    user: np.ndarray,
    *,
    seed: int,
    penalties: Sequence[float] = (FIRM_PENALTY,),
) -> np.ndarray:
    """Ridge weights of raw features beside logits that are there already, of a logistic regression by Newton's steps.

    Shapes: features (N, F), of which the first says whether there are any; expected (N,) logits; label (N,); user (N,);
    returns (F,), zeros where rows of known users are too few.

    Args:
        penalties: of several, held-out users choose.
    """
    seen = features[:, 0] > 0
    features, expected, label, user = (part[seen].astype(np.float64) for part in (features, expected, label, user))
    people, person = np.unique(user, return_inverse=True)
    if len(people) < 2 * FOLDS:
        return np.zeros(features.shape[1])
    standard, centre, scale = _standardised(features)
    fold = np.random.default_rng(seed).integers(0, FOLDS, len(people))[person]

    def weights(rows: np.ndarray, ridge: float) -> np.ndarray:
        known, offset, clicked = standard[rows], expected[rows], label[rows]
        weight = np.zeros(known.shape[1])
        for _ in range(NEWTON_STEPS):
            probability = expit(offset + known @ weight)
            slope = known.T @ (clicked - probability) - ridge * weight
            curvature = (known * (probability * (1 - probability))[:, None]).T @ known
            weight = weight + np.linalg.solve(curvature + ridge * np.eye(len(weight)), slope)
        return weight

    def loss(ridge: float) -> float:
        """Log loss of held-out users."""
        total = 0.0
        for part in range(FOLDS):
            score = expected[fold == part] + standard[fold == part] @ weights(fold != part, ridge)
            total += float((np.logaddexp(0, score) - label[fold == part] * score).sum())
        return total

    ridge = penalties[0] if len(penalties) == 1 else min(penalties, key=loss)
    best = weights(np.ones(len(standard), bool), ridge) / scale
    best[0] -= centre @ best
    return np.asarray(best)


def _standardised(features: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wide features (N, F) centred and scaled, and by what; the first (whether there are any) stays as it is."""
    scale = features.std(0)
    scale[0] = 1.0
    scale[scale < 1e-9] = np.inf
    centre = features.mean(0)
    centre[0] = 0.0
    return (features - centre) / scale, centre, scale


def _gather(
    ranker: Ranker, batch_builder: BatchBuilder, parts: Sequence[tuple[Examples, int]], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Wide features (N, F) of training rows, what is expected so far (N,), labels (N,) and users (N,)."""
    features, so_far, labels, users = [], [], [], []
    total = sum(len(rows) for rows, _ in parts)
    with torch.no_grad():
        for part, (everything, slot) in enumerate(parts):
            rows = everything
            if total > ROWS_AT_MOST:
                most = round(ROWS_AT_MOST * len(rows) / total)
                rows = rows.take(np.sort(np.random.default_rng([seed, part]).permutation(len(rows))[:most]))
            rows = rows.take(np.argsort(rows.user, kind="stable"))
            for at in range(0, len(rows), 8192):
                batch = batch_builder.batch(rows.take(np.arange(at, min(at + 8192, len(rows)))), slot)
                found, expected = ranker.wide_score(batch)
                features.append(found.numpy())
                so_far.append((batch.offset + expected).numpy())
                labels.append(batch.label.numpy())
                users.append(rows.user[at : at + 8192])
    return np.concatenate(features), np.concatenate(so_far), np.concatenate(labels), np.concatenate(users)

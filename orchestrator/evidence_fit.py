"""Weights of the plain facts in closed form: a ridge regression that users held out of it have chosen.

Ratings of cold users are told mostly by few facts (``models.evidence.wide_facts``), and the warm users who teach what
those facts are worth may be a few hundred. So their weights are not left to descent: a ridge regression has one
solution, and whole users left out of it choose how much of the finer facts to believe. The network then learns only
what is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from models.evidence import FIRM_FACTS
from models.ranker import Ranker
from orchestrator.training_data import Assembler, Examples

PENALTIES = (100.0, 300.0, 1_000.0, 3_000.0, 10_000.0, 100_000.0, 1e9)
"""Ridges on standardised facts that are tried; the last leaves a fact out."""
FIRM_PENALTY = 10.0
FOLDS = 5
ROWS_AT_MOST = 400_000


def fit_evidence(ranker: Ranker, assembler: Assembler, parts: Sequence[tuple[Examples, int]], *, seed: int) -> None:
    """Solve for the shared weights of the facts on training rows of several domains, each with its slot."""
    facts, target, user = _gathered(ranker, assembler, parts, seed)
    with torch.no_grad():
        ranker.evidence.add_(torch.from_numpy(solve(facts, target, user, seed=seed)).to(ranker.evidence))


def fit_own_evidence(ranker: Ranker, assembler: Assembler, rows: Examples, slot: int, *, seed: int) -> None:
    """Solve for what a domain's own weights add to the shared ones, often nothing, on its training rows."""
    facts, target, user = _gathered(ranker, assembler, [(rows, slot)], seed)
    own = ranker.owned(slot).evidence
    with torch.no_grad():
        own.add_(torch.from_numpy(solve(facts, target, user, seed=seed, firm=PENALTIES)).to(own))


def solve(
    facts: np.ndarray, target: np.ndarray, user: np.ndarray, *, seed: int, firm: Sequence[float] = (FIRM_PENALTY,)
) -> np.ndarray:
    """Ridge weights of raw facts, chosen by held-out users; zeros where rows of known users are too few.

    Shapes: facts (N, WIDE), of which the first says whether there are any; target (N,); user (N,); returns (WIDE,).

    Args:
        firm: ridges to try on the first facts; where one is tried that leaves them out, nothing may be the answer.
    """
    seen = facts[:, 0] > 0
    facts, target, user = facts[seen].astype(np.float64), target[seen].astype(np.float64), user[seen]
    people, person = np.unique(user, return_inverse=True)
    if len(people) < 2 * FOLDS:
        return np.zeros(facts.shape[1])
    scale = facts.std(0)
    scale[0] = 1.0
    scale[scale < 1e-9] = np.inf
    centre = facts.mean(0)
    centre[0] = 0.0
    standard = (facts - centre) / scale
    fold = np.random.default_rng(seed).integers(0, FOLDS, len(people))[person]
    grams = [standard[fold == part].T @ standard[fold == part] for part in range(FOLDS)]
    sums = [standard[fold == part].T @ target[fold == part] for part in range(FOLDS)]

    def weights(without: int | None, ridges: tuple[float, float]) -> np.ndarray:
        kept = [part for part in range(FOLDS) if part != without]
        ridge = np.full(facts.shape[1], ridges[1])
        ridge[:FIRM_FACTS] = ridges[0]
        gram = np.sum([grams[part] for part in kept], axis=0)
        return np.linalg.solve(gram + np.diag(ridge), np.sum([sums[part] for part in kept], axis=0))

    def error(ridges: tuple[float, float]) -> float:
        """Squared error of held-out users, less what the target's own squares are, which all ridges share."""
        held = [weights(part, ridges) for part in range(FOLDS)]
        return float(sum(w @ grams[part] @ w - 2 * w @ sums[part] for part, w in enumerate(held)))

    tried = [(first, rest) for first in firm for rest in PENALTIES if rest >= first]
    best = weights(None, min(tried, key=error)) / scale
    best[0] -= centre @ best
    return best


def _gathered(
    ranker: Ranker, assembler: Assembler, parts: Sequence[tuple[Examples, int]], seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Facts (N, WIDE) of training rows, what the label is beyond what is expected so far (N,), and the users (N,)."""
    facts, beyond, users = [], [], []
    total = sum(len(rows) for rows, _ in parts)
    with torch.no_grad():
        for part, (rows, slot) in enumerate(parts):
            if total > ROWS_AT_MOST:
                most = round(ROWS_AT_MOST * len(rows) / total)
                rows = rows.take(np.sort(np.random.default_rng([seed, part]).permutation(len(rows))[:most]))
            rows = rows.take(np.argsort(rows.user, kind="stable"))
            for at in range(0, len(rows), 8192):
                batch = assembler.batch(rows.take(np.arange(at, min(at + 8192, len(rows)))), slot)
                known, expected = ranker.facts(batch)
                facts.append(known.numpy())
                beyond.append((batch.label - batch.prior - expected).numpy())
                users.append(rows.user[at : at + 8192])
    return np.concatenate(facts), np.concatenate(beyond), np.concatenate(users)

"""A logistic (of ratings: ridge) regression on a domain's declared columns: what a team could have for nothing."""

from __future__ import annotations

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss

from domains.events.splits import Split
from orchestrator.data.batches import Examples
from orchestrator.data.dataset import Workspace

MOST_ROWS = 200_000
"""Training rows that the regression reads, at most; a draw of them where there are more."""
STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Squared penalties on the coefficients; the one with the lowest loss on validation is taken."""


def declared_columns(workspace: Workspace, name: str) -> tuple[dict[str, np.ndarray], Examples]:
    """Codes of every declared column that varies, (N,) each, by what it is of and its name; and the rows themselves.

    The code books are the domain's own, so that columns count which the shared model has never seen.
    """
    domain = workspace.domain(name)
    encoder = workspace.fit_encoder(task=domain.spec.task, slots=[name], lifelong=1, short=1, with_users=False)
    rows = workspace.examples(encoder, name)
    item_codes, user_codes = workspace.item_codes(encoder, name)[rows.item], workspace.user_codes(encoder)[rows.user]
    columns = {
        f"{what} {field.name}": codes[:, at]
        for what, fields, codes in (
            ("item", encoder.item_fields, item_codes),
            ("user", encoder.user_fields, user_codes),
            ("context", encoder.context_fields, rows.context),
        )
        for at, field in enumerate(fields)
        if np.ptp(codes[:, at])
    }
    return columns, rows


def regression(task: str, columns: dict[str, np.ndarray], label: np.ndarray, split: Split) -> np.ndarray:
    """Scores of all rows, (N,): fitted on training rows, the penalty chosen on validation rows, blind to test rows.

    A domain's own traits are alike in all of its rows, so the intercept holds them. Without a column that varies, or
    with one label alone in training, every row gets the mean.
    """
    train = split.train
    if len(train) > MOST_ROWS:
        train = np.sort(np.random.default_rng(0).permutation(train)[:MOST_ROWS])
    target = np.asarray(label[train], np.float64)
    if not columns or np.ptp(target) == 0:
        return np.full(len(label), target.mean())
    design = _one_hot(columns)
    best, lowest = np.full(len(label), target.mean()), np.inf
    chosen = np.asarray(label[split.validation], np.float64)
    for strength in STRENGTHS:
        if task == "ctr":
            fitted = LogisticRegression(C=1 / strength, max_iter=300).fit(design[train], target)
            score = fitted.predict_proba(design)[:, 1]
            loss = log_loss(chosen, score[split.validation], labels=[0, 1])
        else:
            score = Ridge(alpha=strength).fit(design[train], target).predict(design)
            loss = float(((score[split.validation] - chosen) ** 2).mean())
        if loss < lowest:
            best, lowest = score, loss
    return best


def _one_hot(columns: dict[str, np.ndarray]) -> sparse.csr_matrix:
    sizes = [int(codes.max()) + 1 for codes in columns.values()]
    offsets = np.cumsum([0, *sizes[:-1]])
    places = np.stack([codes + offset for codes, offset in zip(columns.values(), offsets, strict=True)], 1)
    rows, width = places.shape
    return sparse.csr_matrix(
        (np.ones(rows * width), places.ravel(), np.arange(0, rows * width + 1, width)), (rows, int(sum(sizes)))
    )

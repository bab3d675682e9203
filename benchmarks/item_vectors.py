"""Item vectors to start networks from, of who took what: a truncated singular value decomposition, no labels needed.

Networks that learn a vector for each of 900,000 items from clicks alone stay at chance for hundreds of steps, because
a product of two small random vectors has next to no gradient. Every network of a table starts from the same vectors
instead, made of events before any row that it is taught or judged on.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import sparse
from sklearn.utils.extmath import randomized_svd
from torch import nn

SMOOTHING = 5.0
ROUNDS = 3
LEAST = 1e-4
"""Length below which a vector says nothing: its direction is rounding."""


def item_vectors(user: np.ndarray, item: np.ndarray, items: int, width: int, seed: int) -> np.ndarray:
    """Unit vectors of items, (items, width); zero for items of which nothing is known.

    Each user is the unit vector of what they took, an item the rarer the heavier. Of the singular vectors the first is
    left out: it says how much was taken, not what.

    Args:
        user, item: (events,), repetitions count once.
    """
    taken = sparse.csr_matrix((np.ones(len(user), np.float32), (user, item)), shape=(int(user.max()) + 1, items))
    taken.data[:] = 1.0
    people = np.asarray(taken.sum(0)).ravel()
    weighed = taken @ sparse.diags((1 / np.sqrt(people + SMOOTHING)).astype(np.float32))
    length = np.sqrt(np.asarray(weighed.multiply(weighed).sum(1)).ravel())
    weighed = (sparse.diags((1 / np.maximum(length, 1e-6)).astype(np.float32)) @ weighed).tocsr()
    left, _, _ = randomized_svd(weighed, width + 1, n_iter=ROUNDS, random_state=seed)
    vectors = weighed.T @ left[:, 1:]
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.where(norm > LEAST, vectors / np.maximum(norm, LEAST), 0).astype(np.float32)


@torch.no_grad()
def begin_with(table: nn.Parameter, vectors: np.ndarray) -> None:
    """Write vectors into a table of as many rows; where they are zero, the network's own start stays."""
    given = torch.from_numpy(vectors)
    known = given.abs().sum(1) > 0
    table[known] = given[known]

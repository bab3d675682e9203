"""Baselines with no network: what a table of means, biases, counts or factors already gets.

Every results table carries these rows, because a network that loses to an item mean has learnt nothing. All of them
are numpy in, numpy out, with one interface (`PlainBaseline`): users share one index over both domains, items are
counted inside their own domain, labels are ratings or clicks. Nothing here is random except the starting point of
`BiasedFactors`, which is seeded.

    Y  rows of the target domain      S  rows of the source domain
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.linear_model import LinearRegression

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Rows:
    """Observed rows of one domain: user (N,), item (N,), label (N,)."""

    user: Integers
    item: Integers
    label: Floats

    @classmethod
    def of(cls, user: NDArray, item: NDArray, label: NDArray) -> Self:
        """Rows from any integer and number arrays.

        Raises:
            ValueError: the arrays differ in length, are empty, or hold a negative index.
        """
        rows = cls(np.asarray(user, np.int64), np.asarray(item, np.int64), np.asarray(label, np.float64))
        if not len(rows.user) == len(rows.item) == len(rows.label):
            raise ValueError(f"user, item and label differ in length: {len(user)}, {len(item)}, {len(label)}")
        if not len(rows.user):
            raise ValueError("a baseline cannot be fitted on no rows")
        if min(rows.user.min(), rows.item.min()) < 0:
            raise ValueError("user and item are indices and cannot be negative")
        return rows


class PlainBaseline(Protocol):
    """Fit on target rows (and on source rows, where the baseline borrows); predict a label or a score per pair."""

    def fit(self, user: NDArray, item: NDArray, label: NDArray, source: Rows | None = None) -> Self: ...

    def predict(self, user: NDArray, item: NDArray) -> Floats: ...


def shrunken_mean(index: Integers, value: Floats, size: int, ridge: float) -> Floats:
    """Sum of ``value`` per index divided by (count + ridge), (size,): the ridge solution for one bias per index."""
    total = np.bincount(index, value, minlength=size)
    count = np.bincount(index, minlength=size)
    return total / np.maximum(count + ridge, 1e-12)


def looked_up(table: Floats, index: NDArray, default: float = 0.0) -> Floats:
    """``table[index]``, with ``default`` for indices that the table has never seen."""
    index = np.asarray(index, np.int64)
    known = index < len(table)
    return np.where(known, table[np.where(known, index, 0)], default)


@dataclass
class TrainMean:
    """The mean training label for everyone."""

    mean: float = field(init=False, default=0.0)

    def fit(self, user: NDArray, item: NDArray, label: NDArray, source: Rows | None = None) -> Self:
        self.mean = float(Rows.of(user, item, label).label.mean())
        return self

    def predict(self, user: NDArray, item: NDArray) -> Floats:
        return np.full(len(item), self.mean)


@dataclass
class ItemMean:
    """The item's mean label, drawn toward the train mean as if by ``smoothing`` rows of it."""

    smoothing: float = 5.0
    mean: float = field(init=False, default=0.0)
    item_bias: Floats = field(init=False, default_factory=lambda: np.zeros(0))

    def fit(self, user: NDArray, item: NDArray, label: NDArray, source: Rows | None = None) -> Self:
        rows = Rows.of(user, item, label)
        self.mean = float(rows.label.mean())
        self.item_bias = shrunken_mean(rows.item, rows.label - self.mean, rows.item.max() + 1, self.smoothing)
        return self

    def predict(self, user: NDArray, item: NDArray) -> Floats:
        return self.mean + looked_up(self.item_bias, item)


@dataclass
class ItemUserBias:
    """mean + item bias + user bias, the minimiser of squared error with a ridge on either bias.

    Either bias has a closed form given the other; alternating the two descends a strictly convex objective, so it ends
    at the one solution that a ridge regression on one-hot users and items would find (the test compares them).
    """

    item_ridge: float = 5.0
    user_ridge: float = 5.0
    sweeps: int = 100
    tolerance: float = 1e-8
    mean: float = field(init=False, default=0.0)
    item_bias: Floats = field(init=False, default_factory=lambda: np.zeros(0))
    user_bias: Floats = field(init=False, default_factory=lambda: np.zeros(0))

    def fit(self, user: NDArray, item: NDArray, label: NDArray, source: Rows | None = None) -> Self:
        rows = Rows.of(user, item, label)
        users, items = rows.user.max() + 1, rows.item.max() + 1
        self.mean = float(rows.label.mean())
        residual = rows.label - self.mean
        self.item_bias, self.user_bias = np.zeros(items), np.zeros(users)
        for _ in range(self.sweeps):
            self.item_bias = shrunken_mean(rows.item, residual - self.user_bias[rows.user], items, self.item_ridge)
            before = self.user_bias
            self.user_bias = shrunken_mean(rows.user, residual - self.item_bias[rows.item], users, self.user_ridge)
            if np.abs(self.user_bias - before).max() < self.tolerance:
                break
        return self

    def predict(self, user: NDArray, item: NDArray) -> Floats:
        return self.mean + looked_up(self.item_bias, item) + looked_up(self.user_bias, user)


@dataclass
class MappedSourceBias:
    """Item mean of the target plus the user's source bias, mapped by a line fitted on warm shared users.

    The one-number bridge: a user who rates high in the source rates high in the target. The line is fitted on the
    target rows of users who have rows in both domains; cold users have none, so nothing of them is seen. A user who is
    unknown to the source gets the item mean.

    Raises (fit):
        ValueError: no source rows were given.
    """

    smoothing: float = 5.0
    source_ridge: float = 5.0
    slope: float = field(init=False, default=0.0)
    intercept: float = field(init=False, default=0.0)

    def fit(self, user: NDArray, item: NDArray, label: NDArray, source: Rows | None = None) -> Self:
        if source is None:
            raise ValueError("the mapped source bias needs source rows")
        items = ItemMean(self.smoothing).fit(user, item, label)
        return self.fit_line(Rows.of(user, item, label), items, source_bias(source, self.source_ridge))

    def fit_line(self, rows: Rows, items: ItemMean, bias: Floats) -> Self:
        """Fit the line alone, between item means and source biases (NaN for the unknown) that are there already."""
        self._items, self._source_bias = items, bias
        from_source = looked_up(bias, rows.user, np.nan)
        shared = ~np.isnan(from_source)
        self.slope = self.intercept = 0.0
        if np.unique(from_source[shared]).size > 1:  # a line needs two points
            residual = rows.label - items.predict(rows.user, rows.item)
            line = LinearRegression().fit(from_source[shared, None], residual[shared])
            self.slope, self.intercept = float(line.coef_[0]), float(line.intercept_)
        return self

    def predict(self, user: NDArray, item: NDArray) -> Floats:
        from_source = looked_up(self._source_bias, user, np.nan)
        personal = np.where(np.isnan(from_source), 0.0, self.intercept + self.slope * from_source)
        return self._items.predict(user, item) + personal


def source_bias(source: Rows, ridge: float) -> Floats:
    """Each user's bias in the source beside the items' own, by user index; NaN for users without rows."""
    bias = ItemUserBias(ridge, ridge).fit(source.user, source.item, source.label).user_bias
    return np.where(np.bincount(source.user) > 0, bias, np.nan)


@dataclass
class Popularity:
    """How often the item was liked: its rows with a label above ``positive_above``. A ranking score."""

    positive_above: float = 0.0
    count: Floats = field(init=False, default_factory=lambda: np.zeros(0))

    def fit(self, user: NDArray, item: NDArray, label: NDArray, source: Rows | None = None) -> Self:
        rows = Rows.of(user, item, label)
        liked = rows.item[rows.label > self.positive_above]
        self.count = np.bincount(liked, minlength=rows.item.max() + 1).astype(np.float64)
        return self

    def predict(self, user: NDArray, item: NDArray) -> Floats:
        return looked_up(self.count, item)


@dataclass
class CoOccurrence:
    """How many users liked the candidate together with each thing that this user liked, in either domain, added up.

    ``normalised`` divides each pair's count by the root of both items' counts (cosine), so that a popular item does not
    win by being popular alone. Ties, and users without a history, are ordered by popularity. The pair of an item with
    itself counts for nothing. A ranking score.
    """

    positive_above: float = 0.0
    normalised: bool = True

    def fit(self, user: NDArray, item: NDArray, label: NDArray, source: Rows | None = None) -> Self:
        rows = Rows.of(user, item, label)
        items = int(rows.item.max()) + 1
        known = [rows.user.max() + 1] + ([source.user.max() + 1] if source is not None else [])
        users = int(max(known))
        target = _likes(rows, users, items, self.positive_above)
        history = [target]
        if source is not None:
            history.append(_likes(source, users, int(source.item.max()) + 1, self.positive_above))
        self._history = sparse.hstack(history, format="csr")  # (users, target items then source items)
        together = (self._history.T @ target).tocoo()
        count = np.asarray(self._history.sum(axis=0)).ravel()
        data = np.where(together.row == together.col, 0.0, together.data)  # target items come first in both
        if self.normalised:
            data = data / np.sqrt(np.maximum(count[together.row] * count[together.col], 1.0))
        self._together = sparse.csr_matrix((data, (together.col, together.row)), shape=together.shape[::-1])
        self._popularity = count[:items]
        return self

    def predict(self, user: NDArray, item: NDArray) -> Floats:
        user, item = np.asarray(user, np.int64), np.asarray(item, np.int64)
        known = (user < self._history.shape[0]) & (item < self._together.shape[0])
        score = np.zeros(len(user))
        chosen = np.flatnonzero(known)
        for rows in np.array_split(chosen, max(1, len(chosen) // 65_536)):
            pairs = self._history[user[rows]].multiply(self._together[item[rows]])
            score[rows] = np.asarray(pairs.sum(axis=1)).ravel()
        # Below any difference of one co-occurrence, so it decides ties only.
        popularity = looked_up(self._popularity, item)
        return score + 1e-9 * popularity / max(1.0, self._popularity.max())


def _likes(rows: Rows, users: int, items: int, positive_above: float) -> sparse.csr_matrix:
    liked = rows.label > positive_above
    pairs = (np.ones(int(liked.sum())), (rows.user[liked], rows.item[liked]))
    matrix = sparse.csr_matrix(pairs, shape=(users, items))
    matrix.data[:] = 1.0  # repeated events of one user are one like
    return matrix


@dataclass
class BiasedFactors:
    """Biased matrix factorisation: mean + b_i + b_u + p_u·q_i, by alternating ridge solves on the explicit labels.

    With ``pool_source`` and source rows, source items join as further columns and users keep one vector for both
    domains, so a cold user of the target is known by the source (the closed-form cousin of CMF; a source row weighs
    ``source_weight``). scikit-learn factors no matrix with holes, and implicit's factors read confidence instead of
    ratings, so the solve is here; each half-step is exact. The mean is each domain's own.
    """

    width: int = 10
    ridge: float = 5.0
    sweeps: int = 15
    seed: int = 0
    pool_source: bool = False
    source_weight: float = 1.0

    def fit(self, user: NDArray, item: NDArray, label: NDArray, source: Rows | None = None) -> Self:
        rows = Rows.of(user, item, label)
        self._items = int(rows.item.max()) + 1
        self.mean = float(rows.label.mean())
        users, items, labels = rows.user, rows.item, rows.label - self.mean
        weights = np.ones(len(labels))
        if self.pool_source and source is not None:
            users = np.concatenate([users, source.user])
            items = np.concatenate([items, source.item + self._items])
            labels = np.concatenate([labels, source.label - source.label.mean()])
            weights = np.concatenate([weights, np.full(len(source.label), self.source_weight)])
        shape = (int(users.max()) + 1, int(items.max()) + 1)
        generator = np.random.default_rng(self.seed)
        self.item_bias, self.item_factors = np.zeros(shape[1]), generator.normal(0, 0.1, (shape[1], self.width))
        weight = sparse.csr_matrix((weights, (users, items)), shape)
        told = sparse.csr_matrix((weights * labels, (users, items)), shape)
        of_item, told_of_item = weight.T.tocsr(), told.T.tocsr()
        for _ in range(self.sweeps):
            self.user_bias, self.user_factors = _ridge_side(weight, told, self.item_bias, self.item_factors, self.ridge)
            self.item_bias, self.item_factors = _ridge_side(
                of_item, told_of_item, self.user_bias, self.user_factors, self.ridge
            )
        return self

    def predict(self, user: NDArray, item: NDArray) -> Floats:
        user, item = np.asarray(user, np.int64), np.asarray(item, np.int64)
        score = self.mean + looked_up(self.user_bias, user) + looked_up(self.item_bias[: self._items], item)
        both = (user < len(self.user_factors)) & (item < self._items)
        score[both] += (self.user_factors[user[both]] * self.item_factors[item[both]]).sum(axis=1)
        return score


def _ridge_side(
    weight: sparse.csr_matrix, told: sparse.csr_matrix, other_bias: Floats, other_factors: Floats, ridge: float
) -> tuple[Floats, Floats]:
    """Bias (size,) and factors (size, width) of one side, given the other; weights and weighted labels (size, others).

    Squares of the others' vectors are made once for each of them, not for each row, and half of each square is enough.
    """
    seen = np.hstack([np.ones((len(other_bias), 1)), other_factors])  # the 1 carries the bias
    width = seen.shape[1]
    left, right = np.triu_indices(width)
    squares = seen[:, left] * seen[:, right]
    moment = told @ seen - weight @ (seen * other_bias[:, None])
    solved = np.zeros((weight.shape[0], width))
    for first in range(0, len(solved), 4096):  # bounds the memory of the Gram matrices
        part = slice(first, min(len(solved), first + 4096))
        gram = np.zeros((part.stop - first, width, width))
        gram[:, left, right] = gram[:, right, left] = weight[part] @ squares
        gram += ridge * np.eye(width)
        solved[part] = np.linalg.solve(gram, moment[part, :, None])[:, :, 0]
    return solved[:, 0], solved[:, 1:]


@dataclass
class ImplicitFactors:
    """Matrix factorisation of likes (Hu, Koren and Volinsky's confidence-weighted least squares), from `implicit`.

    Source likes, where given, are further columns, so that a cold user has a vector. A ranking score; users or items
    that were never seen score 0.

    Raises (fit):
        ImportError: the optional package `implicit` is not installed.
    """

    width: int = 32
    confidence: float = 10.0
    ridge: float = 0.05
    sweeps: int = 15
    seed: int = 0
    positive_above: float = 0.0

    def fit(self, user: NDArray, item: NDArray, label: NDArray, source: Rows | None = None) -> Self:
        from implicit.als import AlternatingLeastSquares  # optional: a baseline of the benchmarks only

        rows = Rows.of(user, item, label)
        self._items = int(rows.item.max()) + 1
        users = int(max(rows.user.max(), source.user.max() if source is not None else 0)) + 1
        likes = [_likes(rows, users, self._items, self.positive_above)]
        if source is not None:
            likes.append(_likes(source, users, int(source.item.max()) + 1, self.positive_above))
        model = AlternatingLeastSquares(
            factors=self.width,
            alpha=self.confidence,
            regularization=self.ridge,
            iterations=self.sweeps,
            random_state=self.seed,
            num_threads=1,  # sums in a fixed order: the same seed gives the same factors
            use_gpu=False,
        )
        model.fit(sparse.hstack(likes, format="csr").astype(np.float32), show_progress=False)
        self._user_factors, self._item_factors = np.asarray(model.user_factors), np.asarray(model.item_factors)
        return self

    def predict(self, user: NDArray, item: NDArray) -> Floats:
        user, item = np.asarray(user, np.int64), np.asarray(item, np.int64)
        both = (user < len(self._user_factors)) & (item < self._items)
        score = np.zeros(len(user))
        score[both] = (self._user_factors[user[both]] * self._item_factors[item[both]]).sum(axis=1)
        return score

"""Wide features of a query's candidates, counted and in closed form: what a ranking network starts from.

How often an item is met, at all and lately; how often it is met by people who also met what this user has, in their own
domain and in the other; how near it lies to that in a factorisation of who met what; and, where titles are given, how
alike they read. A few weights make one score of them.

No one's features may rest on their own answer. Features of a training query are counted on other people alone (`folds`
of users take turns), those of validation and test on events that are held back from neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from scipy import sparse
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import randomized_svd

from benchmarks.ranking_queries import DAY_US, Log, Queries
from models.training.listwise import listwise_losses

ALWAYS = ("popularity", "together, own", "together, other", "factors, own", "factors, other")
TIMED = ("7 days", "30 days", "90 days", "365 days", "before", "neighbours, own", "neighbours, other")
TITLES = ("titles, mean", "titles, latest", "titles, nearest", "titles, nearest of the other")
_WINDOWS_DAYS = (7, 30, 90, 365, 36_500)
_FADES_BY = 0.6  # weight of an event beside the one after it
_FADES_IN_DAYS = 10.0
_NEIGHBOURS, _NEIGHBOUR_DAYS = 5, 30.0
_AT_ONCE = 256
_BENDS = (0.3, 0.6, 0.85)
_LATEST = 20


@dataclass(frozen=True)
class Counts:
    """What is counted on events of some users. Matrices are (V, V): row what a user has, column what is asked."""

    popularity: np.ndarray
    together: sparse.csr_matrix
    neighbours: sparse.csr_matrix | None
    factors: np.ndarray
    met: np.ndarray

    @classmethod
    def of(cls, log: Log, items: int, *, timed: bool, width: int, seed: int) -> Counts:
        """Count these events; ``met`` keeps (item, second) of each, sorted, as one number."""
        has = sparse.csr_matrix((np.ones(len(log)), (log.user, log.item)), shape=(int(log.user.max()) + 1, items))
        has.data[:] = 1.0
        popularity = np.asarray(has.sum(0)).ravel()
        together = (has.T @ has).tocsr()
        together.setdiag(0)
        together.eliminate_zeros()
        # Half a popularity is taken from what the user has: a common possession says less of them.
        said = sparse.diags(1 / np.sqrt(np.maximum(popularity, 1)))
        people = np.asarray(has.sum(1)).ravel()
        evened = sparse.diags(1 / np.sqrt(np.maximum(people, 1))) @ has @ said
        factors = randomized_svd(evened, width, n_iter=2, random_state=seed)[2].T
        factors = factors / np.maximum(np.linalg.norm(factors, axis=1, keepdims=True), 1e-9)
        met = np.sort(log.item * _LONG + log.time_us // 1_000_000)
        near = (said @ _neighbours(log, items)).tocsr() if timed else None
        return cls(popularity, (said @ together).tocsr(), near, factors.astype(np.float32), met)


_LONG = 2**33


def _neighbours(log: Log, items: int) -> sparse.csr_matrix:
    """How often two items stand within a few places of each other in one life, less where time lies between."""
    parts = []
    for gap in range(1, _NEIGHBOURS + 1):
        same = log.user[gap:] == log.user[:-gap]
        apart = (log.time_us[gap:] - log.time_us[:-gap])[same] / DAY_US
        parts.append((np.exp(-apart / _NEIGHBOUR_DAYS), log.item[:-gap][same], log.item[gap:][same]))
    weight, left, right = (np.concatenate(part) for part in zip(*parts, strict=True))
    near = sparse.csr_matrix((weight, (left, right)), shape=(items, items))
    return near + near.T


def title_vectors(titles: Sequence[str], width: int, seed: int) -> np.ndarray:
    """What an item's title says, (V, width) of length 1, or 0 where there is none."""
    words = TfidfVectorizer(
        sublinear_tf=True, min_df=2, max_df=0.6, token_pattern=r"[A-Za-z]{2,}", stop_words="english", dtype=np.float32
    ).fit_transform(titles)
    vectors = TruncatedSVD(min(width, words.shape[1] - 1), random_state=seed).fit_transform(words)
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def features(queries: Queries, counts: Counts, titles: np.ndarray | None = None) -> np.ndarray:
    """Features of each candidate, (Q, C, N) float32, in the order of `names`."""
    looked = np.zeros((min(_AT_ONCE, len(queries)), len(counts.popularity)), np.float32)
    parts = [
        _features(queries.take(np.arange(at, min(at + _AT_ONCE, len(queries)))), counts, titles, looked)
        for at in range(0, len(queries), _AT_ONCE)
    ]
    return np.concatenate(parts)


def names(*, timed: bool, titled: bool) -> tuple[str, ...]:
    return ALWAYS + (TIMED if timed else ()) + (TITLES if titled else ())


def _features(queries: Queries, counts: Counts, titles: np.ndarray | None, looked: np.ndarray) -> np.ndarray:
    """``looked`` (Q at least, V) is zero before and after: sums of a few rows of a matrix are looked up in it."""
    candidates, seen, items = queries.candidates, queries.seen, len(counts.popularity)
    row, event = visible(queries)
    own = seen.domain[event] == queries.domain[row]
    backwards = queries.stop[row] - 1 - event
    age_days = (queries.now_us[row] - seen.time_us[event]) / DAY_US

    def has(weight: np.ndarray) -> sparse.csr_matrix:
        return sparse.csr_matrix((weight, (row, seen.item[event])), shape=(len(queries), items), dtype=np.float32)

    def counted(matrix: sparse.csr_matrix, weight: np.ndarray) -> np.ndarray:
        found = (has(weight) @ matrix).tocsr()
        place = (np.repeat(np.arange(len(queries)), np.diff(found.indptr)), found.indices)
        looked[place] = found.data
        picked = np.take_along_axis(looked[: len(queries)], candidates, 1)
        looked[place] = 0
        return np.log1p(10 * picked)

    def alike(vectors: np.ndarray, weight: np.ndarray) -> np.ndarray:
        matrix = has(weight)
        total = np.maximum(np.asarray(matrix.sum(1)), 1e-9)
        person = np.asarray(matrix @ vectors, np.float32) / total
        return np.einsum("qcd,qd->qc", vectors[candidates], person)

    fading = _FADES_BY**backwards
    sides = (own.astype(np.float32), (~own).astype(np.float32))
    found = [np.log1p(counts.popularity[candidates])]
    found += [counted(counts.together, side) for side in sides]
    found += [alike(counts.factors, side * fading) for side in sides]
    if counts.neighbours is not None:
        found += _lately(candidates, queries.now_us // 1_000_000, counts.met)
        recent = np.exp(-age_days / _FADES_IN_DAYS)
        found += [counted(counts.neighbours, side * recent) for side in sides]
    if titles is not None:
        found += [alike(titles, sides[0]), alike(titles, sides[0] * fading)]
        found += [_nearest(titles, candidates, row, seen.item[event], side * (backwards < _LATEST)) for side in sides]
    return np.stack(found, 2).astype(np.float32)


def _lately(candidates: np.ndarray, now_s: np.ndarray, met: np.ndarray) -> list[np.ndarray]:
    """Log of how often each candidate was met in some windows that end strictly before the day of the query."""
    today = (now_s // 86_400 * 86_400)[:, None]
    base = candidates * _LONG
    until = np.searchsorted(met, base + today)
    return [
        np.log1p(until - np.searchsorted(met, base + np.maximum(today - days * 86_400, 0))) for days in _WINDOWS_DAYS
    ]


def _nearest(
    vectors: np.ndarray, candidates: np.ndarray, row: np.ndarray, item: np.ndarray, counts: np.ndarray
) -> np.ndarray:
    """Likeness of each candidate to the nearest of what the user has, (Q, C)."""
    best = np.zeros(candidates.shape, np.float32)
    chosen = np.flatnonzero(counts > 0)
    starts = np.searchsorted(row[chosen], np.arange(len(candidates) + 1))
    for query in range(len(candidates)):
        mine = item[chosen[starts[query] : starts[query + 1]]]
        if len(mine):
            best[query] = (vectors[candidates[query]] @ vectors[mine].T).max(1)
    return best


def visible(queries: Queries) -> tuple[np.ndarray, np.ndarray]:
    """All pairs of a query and an event that it sees, by query: places in the queries and in ``seen``."""
    length = queries.stop - queries.start
    row = np.repeat(np.arange(len(queries)), length)
    within = np.arange(int(length.sum())) - np.repeat(np.cumsum(length) - length, length)
    return row, queries.start[row] + within


def others_features(
    queries: Queries, log: Log, items: int, *, folds: int, timed: bool, width: int, seed: int
) -> np.ndarray:
    """Features of training queries, each counted on the events of other people; titles are left out."""
    fold = np.random.default_rng(seed).integers(0, folds, int(log.user.max()) + 1)
    found: np.ndarray | None = None
    for part in range(folds):
        counts = Counts.of(log.take(fold[log.user] != part), items, timed=timed, width=width, seed=seed)
        rows = np.flatnonzero(fold[queries.user] == part)
        own = features(queries.take(rows), counts) if len(rows) else np.zeros((0, 0, 0), np.float32)
        if len(rows):
            found = np.zeros((*queries.candidates.shape, own.shape[2]), np.float32) if found is None else found
            found[rows] = own
    assert found is not None, "there is a query to answer"
    return found


@dataclass(frozen=True)
class Weights:
    """One score of many features, each told by a bent line of its own, for each domain apart.

    Shapes: scale (N,), knots (K, N), centre ((K + 1) N,), weight (2, (K + 1) N)
    """

    scale: np.ndarray
    knots: np.ndarray
    centre: np.ndarray
    weight: np.ndarray

    def score(self, known: np.ndarray, domain: np.ndarray) -> np.ndarray:
        """(Q, C) from features (Q, C, N) and the domain of each query (Q,)."""
        found = np.empty(known.shape[:2], np.float32)
        for at in range(0, len(known), _AT_ONCE):
            rows = slice(at, at + _AT_ONCE)
            given = _bent(known[rows], self.scale, self.knots) - self.centre
            found[rows] = np.einsum("qcn,qn->qc", given, self.weight[domain[rows]])
        return found


def weigh(known: np.ndarray, domain: np.ndarray, ridge: float = 1e-3) -> Weights:
    """The lines under which the first candidate of each query is likeliest, by a softmax over its list.

    Lines bend where right answers have quantiles of a feature. The problem is convex: where its solution is sought from
    changes nothing.
    """
    scale = known.std((0, 1))
    scale = np.where(scale < 1e-6, np.inf, scale).astype(np.float32)
    knots = np.quantile(known[:, 0], _BENDS, axis=0).astype(np.float32)
    given = _bent(known, scale, knots)
    centre = given.mean((0, 1))
    weight = np.zeros((2, given.shape[2]), np.float32)
    for own in (0, 1):
        rows = torch.from_numpy(given[domain == own] - centre)
        if not len(rows):
            continue
        label = torch.zeros(rows.shape[:2])
        label[:, 0] = 1
        free = torch.zeros(rows.shape[2], requires_grad=True)
        descent = torch.optim.LBFGS([free], max_iter=40, line_search_fn="strong_wolfe")
        descent.step(partial(_badness, descent, rows, label, free, ridge))
        weight[own] = free.detach().numpy()
    return Weights(scale, knots, centre, weight)


def _bent(known: np.ndarray, scale: np.ndarray, knots: np.ndarray) -> np.ndarray:
    """Each feature, and how far it lies beyond each of its knots, (..., (K + 1) N)."""
    return np.concatenate([known / scale, *(np.maximum(known - knot, 0) / scale for knot in knots)], -1)


def _badness(
    descent: torch.optim.Optimizer, rows: torch.Tensor, label: torch.Tensor, free: torch.Tensor, ridge: float
) -> torch.Tensor:
    descent.zero_grad()
    loss = listwise_losses((rows @ free).view(-1), label.view(-1)).mean() + ridge * free.square().sum()
    loss.backward()
    return loss


def co_occurrence(queries: Queries, known: Log, items: int) -> np.ndarray:
    """How many people have both the candidate and each thing that the user has, added up; ties by popularity. (Q, C)"""
    has = sparse.csr_matrix((np.ones(len(known)), (known.user, known.item)), shape=(int(known.user.max()) + 1, items))
    has.data[:] = 1.0
    popularity = np.asarray(has.sum(0)).ravel()
    together = (has.T @ has).tocsr()
    together.setdiag(0)
    found = []
    for at in range(0, len(queries), _AT_ONCE):
        part = queries.take(np.arange(at, min(at + _AT_ONCE, len(queries))))
        row, event = visible(part)
        mine = sparse.csr_matrix((np.ones(len(row)), (row, part.seen.item[event])), shape=(len(part), items))
        found.append(np.take_along_axis((mine @ together).toarray(), part.candidates, 1))
    # Below any difference of one co-occurrence, so it decides ties only.
    return np.concatenate(found) + 0.5 * popularity[queries.candidates] / max(1.0, popularity.max())

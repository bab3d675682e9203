"""Queries into batches, and a ranker trained on their lists: all candidates of a query read one stored history."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from benchmarks.ranking_features import visible
from benchmarks.ranking_queries import Queries
from domains.events.histories import ACTIONS, action_code
from models.batch import Batch, Events
from models.layers.contrast import ContrastConfig
from models.layers.pyramid import PyramidConfig
from models.ranker.network import DomainConfig, Ranker, RankerConfig
from models.training.loop import TrainConfig, TrainResult, predict, train

FACTOR_SCALE = 0.3
"""Length of an item's vector at first, about that of a random one."""


@dataclass(frozen=True)
class Bins:
    """Inner edges of a feature's quantiles, (N, bins - 1); a network reads in which bin a feature lies, from 1 on."""

    edges: np.ndarray

    @classmethod
    def of(cls, known: np.ndarray, bins: int) -> Bins:
        """Bins that hold about as many of the right answers, which stand first, each: they lie where it matters."""
        return cls(np.quantile(known[:, 0], np.linspace(0, 1, bins + 1)[1:-1], axis=0).T)

    def codes(self, known: np.ndarray) -> np.ndarray:
        """(Q, C, N) features as codes."""
        found = [np.searchsorted(edges, known[..., feature], side="right") for feature, edges in enumerate(self.edges)]
        return 1 + np.stack(found, -1).astype(np.int64)

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.edges.shape[1] + 2,) * len(self.edges)


@dataclass(frozen=True)
class Lists:
    """Queries with what is expected of each candidate before the network, and features that it reads in bins.

    Shapes: offset (Q, C); known (Q, C, N), read only where there are ``bins``
    """

    queries: Queries
    offset: np.ndarray
    known: np.ndarray
    bins: Bins | None = None

    def take(self, index: np.ndarray) -> Lists:
        return Lists(self.queries.take(index), self.offset[index], self.known[index], self.bins)

    def first(self, count: int) -> tuple[Lists, np.ndarray]:
        """Only the candidates that are expected to be best, and where they stood, (Q, count)."""
        place = np.argsort(-self.offset, 1, kind="stable")[:, :count]
        return self.of(place), place

    def contested(self, count: int) -> Lists:
        """Lists to learn from: the best ``count`` candidates of the queries whose right one is among them.

        It stands first, as it did. Were it joined to the best of the others where it is not one of the best, a network
        would learn that what is little expected is right.
        """
        rank = (self.offset[:, 1:] > self.offset[:, :1]).sum(1)
        part = self.take(np.flatnonzero(rank < count))
        others = 1 + np.argsort(-part.offset[:, 1:], 1, kind="stable")[:, : count - 1]
        return part.of(np.column_stack([np.zeros(len(others), np.int64), others]))

    def of(self, place: np.ndarray) -> Lists:
        """The candidates at these places, (Q, K), in that order."""
        queries = replace(self.queries, candidates=np.take_along_axis(self.queries.candidates, place, 1))
        known = np.take_along_axis(self.known, place[:, :, None], 1)
        return Lists(queries, np.take_along_axis(self.offset, place, 1), known, self.bins)


@dataclass(frozen=True)
class Reach:
    """How many events of a history a row may see: of both domains, and the latest of each."""

    lifelong: int = 50
    short: int = 20


class ListBatches:
    """A ``BatchSource`` of whole lists; the same epoch gives the same order."""

    def __init__(self, lists: Lists, *, queries: int, reach: Reach, seed: int = 0, shuffle: bool = True) -> None:
        self.lists, self.size, self.reach, self.seed, self.shuffle = lists, queries, reach, seed, shuffle

    def __len__(self) -> int:
        return math.ceil(len(self.lists.queries) / self.size)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        count = len(self.lists.queries)
        order = np.random.default_rng([self.seed, epoch]).permutation(count) if self.shuffle else np.arange(count)
        for at in range(start * self.size, count, self.size):
            yield batch_of(self.lists.take(order[at : at + self.size]), self.reach)


def batch_of(lists: Lists, reach: Reach) -> Batch:
    """Rows of a query stand together, its first candidate labelled right."""
    queries = lists.queries
    count, width = queries.candidates.shape
    row, event = visible(queries)
    own = queries.seen.domain[event] == queries.domain[row]
    label = np.zeros((count, width), np.float32)
    label[:, 0] = 1
    codes = lists.bins.codes(lists.known) if lists.bins else np.zeros((count, width, 0), np.int64)

    def each(value: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.repeat(value, width))

    def events(chosen: np.ndarray, length: int) -> Events:
        return _events(queries, row[chosen], event[chosen], length, width)

    return Batch(
        domain=each(queries.domain),
        user=each(queries.user + 1),
        item=torch.from_numpy(queries.candidates.reshape(-1)),
        item_features=torch.zeros((count * width, 0), dtype=torch.long),
        user_features=torch.zeros((count * width, 0), dtype=torch.long),
        context=torch.from_numpy(codes.reshape(count * width, -1)),
        time=each(queries.now_us),
        label=torch.from_numpy(label.reshape(-1)),
        weight=torch.ones(count * width),
        offset=torch.from_numpy(lists.offset.reshape(-1)),
        lifelong=events(np.ones(len(row), bool), reach.lifelong),
        short_source=events(~own, reach.short),
        short_target=events(own, reach.short),
    )


def _events(queries: Queries, row: np.ndarray, event: np.ndarray, length: int, width: int) -> Events:
    """The latest ``length`` of these events of each query, stored once for all its candidates."""
    count, seen = len(queries), queries.seen
    held = np.bincount(row, minlength=count)
    stops = np.cumsum(held)
    left = stops[row] - 1 - np.arange(len(row))
    latest = left < length
    kept = np.minimum(held, length)
    place = (kept[row] - 1 - left)[latest]
    shape = (count, max(1, int(kept.max(initial=0))))

    def laid(value: np.ndarray, kind: type) -> torch.Tensor:
        table: np.ndarray = np.zeros(shape, kind)
        table[row[latest], place] = value
        return torch.from_numpy(table)

    return Events(
        item=laid(seen.item[event[latest]], np.int64),
        action=laid(np.full(int(latest.sum()), action_code("buy")), np.int64),
        value=laid(np.ones(int(latest.sum())), np.float32),
        time=laid(seen.time_us[event[latest]], np.int64),
        row=torch.arange(count).repeat_interleave(width),
        start=torch.zeros(count * width, dtype=torch.long),
        stop=torch.from_numpy(kept).repeat_interleave(width),
    )


def new_network(
    items: int, fact_sizes: tuple[int, ...], changes: Mapping[str, Any], seed: int, factors: np.ndarray | None = None
) -> Ranker:
    """A ranker whose two domains share one item table, so that what a user has and what they are asked share vectors.

    Items start from ``factors`` (V, D) where given: who met what says how they lie before any query is learnt from.
    """
    torch.manual_seed(seed)
    given = dict(changes)
    if "pyramid" in given:
        given["pyramid"] = PyramidConfig(**given["pyramid"])
    if "contrast" in given:
        given["contrast"] = ContrastConfig(**given["contrast"])
    config = RankerConfig(
        **{
            "source_items": items,
            "context_fields": fact_sizes,
            "domain_fields": (3,),
            "actions": len(ACTIONS),
            "width": 32,
            "encoder_hidden": 64,
            "head": (64, 32),
            **given,
        }
    )
    ranker = Ranker(config)
    for slot in (0, 1):
        ranker.add_domain(DomainConfig(items=0, feature_codes=(slot + 1,)))
    if factors is not None and factors.shape[1] == config.width:
        with torch.no_grad():
            ranker.embeddings.source_items.rows.weight.copy_(torch.from_numpy(factors) * FACTOR_SCALE)
    return ranker


def fit_network(
    ranker: Ranker, training: Lists, validation: Lists, *, reach: Reach, batch: int, config: TrainConfig
) -> TrainResult:
    """Train on lists; the epoch is chosen by MRR on held-out ones, the start being a candidate too."""
    return train(
        ranker,
        ListBatches(training, queries=batch, reach=reach, seed=config.seed),
        config=config,
        validation=ListBatches(validation, queries=64, reach=reach, shuffle=False),
    )


def answers(ranker: Ranker, lists: Lists, reach: Reach, first: int) -> np.ndarray:
    """Scores of all candidates, (Q, C): the network orders the ``first`` of each query, the others stay behind."""
    read, place = lists.first(first)
    data = ListBatches(read, queries=max(1, 4096 // place.shape[1]), reach=reach, shuffle=False)
    score = predict(ranker, data.batches(0), raw=True)["score"].reshape(place.shape)
    behind = lists.offset - lists.offset.max(1, keepdims=True) + score.min(1, keepdims=True) - 1
    np.put_along_axis(behind, place, score, 1)
    return behind

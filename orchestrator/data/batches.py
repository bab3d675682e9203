"""Events and histories in, batches out: the one place where a row meets what was known at its time.

Training, evaluation and serving all build their batches here, so none can see features that another does not.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np
import torch

from domains.events.histories import COLUMNS, HistoryStore
from models.batch import Batch, Events
from orchestrator.data.encoding import FeatureEncoder


@dataclass(frozen=True)
class Examples:
    """Rows of one domain, as arrays of equal length N.

    ``user`` and ``item`` are vocabulary indices (item local to the domain), ``context`` is (N, C) codes, ``value`` the
    label as the file had it, which is what histories hold. ``offset`` is added to a row's score (a base margin).
    """

    domain: str
    number: int
    user: np.ndarray
    item: np.ndarray
    time_us: np.ndarray
    label: np.ndarray
    value: np.ndarray
    context: np.ndarray
    weight: np.ndarray
    offset: np.ndarray

    def __len__(self) -> int:
        return len(self.user)

    def take(self, index: np.ndarray) -> Self:
        """The rows at ``index``, positions or a mask."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{name: a[index] for name, a in arrays.items() if isinstance(a, np.ndarray)})


Arrays = Mapping[str, np.ndarray]
"""Columns of stored events: item (local index), domain (number), action, value, time_us."""


class EventSource:
    """Histories from the store on disk. ``window(users, before_us, length)`` gives the positions that rows may see."""

    def __init__(self, store: HistoryStore) -> None:
        self.arrays: Arrays = {name: getattr(store, name) for name in COLUMNS}
        self.window = store.window

    def only(self, numbers: frozenset[int]) -> EventSource:
        """The same histories as if other domains had no events; a copy of the events that stay."""
        return self.where(np.isin(self.arrays["domain"], list(numbers)))

    def where(self, chosen: np.ndarray) -> EventSource:
        """The same histories with only those stored events that ``chosen``, (N,) bool, is true of."""
        if chosen.all():
            return self
        before = np.concatenate([[0], np.cumsum(chosen)])
        narrowed = copy.copy(self)
        narrowed.arrays = {name: column[chosen] for name, column in self.arrays.items()}
        # The whole past in the full store bounds the same past among the events that stayed.
        whole = self.window

        def window(users: np.ndarray, before_us: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
            start, stop = whole(users, before_us, len(chosen))
            return np.maximum(before[start], before[stop] - length), before[stop]

        narrowed.window = window
        return narrowed


class OneUser:
    """The histories of a single user, oldest first, as read online; every row may see the events before its time."""

    def __init__(self, arrays: Arrays) -> None:
        self.arrays = arrays

    def window(self, _users: np.ndarray, before_us: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        stop = np.searchsorted(self.arrays["time_us"], before_us, side="left").astype(np.int64)
        return np.maximum(stop - length, 0), stop

    def only(self, numbers: frozenset[int]) -> OneUser:
        """The same history as if other domains had no events."""
        chosen = np.isin(self.arrays["domain"], list(numbers))
        return self if chosen.all() else OneUser({name: column[chosen] for name, column in self.arrays.items()})


class BatchBuilder:
    """Builds batches for one encoder.

    Args:
        encoder: the code books.
        user_codes: (users, P) profile codes by user index; users beyond it have code 0.
        item_codes: for each domain its (V, F) item feature codes by local index.
        source: source histories; target: recent events of each target domain, absent ones have none.
        source_domains: numbers of those whose events a domain's histories hold; an absent domain's hold all.
    """

    def __init__(
        self,
        encoder: FeatureEncoder,
        *,
        user_codes: np.ndarray,
        item_codes: Mapping[str, np.ndarray],
        source: EventSource | OneUser,
        target: Mapping[str, EventSource | OneUser],
        source_domains: Mapping[str, frozenset[int]] | None = None,
    ) -> None:
        self.encoder = encoder
        self._user_codes = user_codes
        self._item_codes = item_codes
        self._source = source
        self._target = target
        self._narrowed = {name: source.only(numbers) for name, numbers in (source_domains or {}).items()}

    def batch(self, rows: Examples, slot: int, *, item_codes: np.ndarray | None = None) -> Batch:
        """A batch of rows of one domain, in the given order.

        Args:
            slot: the domain's slot in the network that will read it.
            item_codes: (N, F) codes of the candidates, when they do not come from the domain's own item table.
        """
        encoder = self.encoder
        user = np.where(rows.user < len(self._user_codes), rows.user, 0)
        source = encoder.source(rows.domain)
        if item_codes is None:
            table = self._item_codes[rows.domain]
            item_codes = table[np.where(rows.item < len(table), rows.item, 0)]
        item = rows.item if source is None else encoder.source_rows(np.full(len(rows), rows.number), rows.item)
        histories = self._narrowed.get(rows.domain, self._source)
        lifelong = self._events(histories, rows, encoder.lifelong, source_rows=True)
        short_source = self._events(histories, rows, encoder.short, source_rows=True)
        if source is not None:
            short_target: Events | None = short_source
        elif rows.domain in self._target:
            short_target = self._events(self._target[rows.domain], rows, encoder.short, source_rows=False)
        else:
            short_target = empty_events(len(rows))
        return Batch(
            domain=torch.full((len(rows),), slot, dtype=torch.long),
            # Whole, even where the network has no user table: the contrast and GAUC tell users apart by it.
            user=_long(rows.user),
            item=_long(item),
            item_features=_long(item_codes),
            user_features=_long(self._user_codes[user]),
            context=_long(rows.context),
            time=_long(rows.time_us),
            label=_float(rows.label),
            weight=_float(rows.weight),
            offset=_float(rows.offset),
            lifelong=lifelong,
            short_source=short_source,
            short_target=short_target,
        )

    def _events(self, source: EventSource | OneUser, rows: Examples, length: int, *, source_rows: bool) -> Events:
        start, stop = source.window(rows.user, rows.time_us, length)
        group, first, stored = _share(rows.user, start, stop, slack=max(16, length // 4))
        position = first[:, None] + np.arange(max(1, int(stored.max(initial=0))))
        held = position < (first + stored)[:, None]
        arrays = source.arrays
        if len(arrays["item"]) == 0:
            return empty_events(len(rows))
        position = np.minimum(position, len(arrays["item"]) - 1)
        local = arrays["item"][position]
        item = self.encoder.source_rows(arrays["domain"][position], local) if source_rows else local
        return Events(
            item=_long(np.where(held, item, 0)),
            action=_long(np.where(held, arrays["action"][position], 0)),
            value=_float(np.where(held, arrays["value"][position], 0)),
            time=_long(np.where(held, arrays["time_us"][position], 0)),
            row=_long(group),
            start=_long(start - first[group]),
            stop=_long(stop - first[group]),
        )


class DomainBatchSampler:
    """Batches of several domains, each batch of one domain, mixed in a seeded order: a ``BatchSource``.

    Rows of one user that are close in time stay together up to ``session_rows``, so that they share one stored
    history; everything else is shuffled anew in each epoch, the same way for the same seed. With ``share`` (k, n), each
    batch is the k-th of n parts of the whole one, for one of n processes; the last batch's part may be empty. With
    ``first_key``, rows carry keys that count up from it, in the order in which they were given.
    """

    def __init__(
        self,
        batch_builder: BatchBuilder,
        parts: list[tuple[Examples, int]],
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        session_rows: int = 8,
        share: tuple[int, int] = (0, 1),
        first_key: int | None = None,
    ) -> None:
        self._batch_builder = batch_builder
        self._parts = parts
        self._size = batch_size
        self._seed = seed
        self._shuffle = shuffle
        self._share = share
        self._sessions = [_sessions(rows, session_rows) for rows, _ in parts]
        counts = [len(rows) for rows, _ in parts]
        self._first_keys = None if first_key is None else first_key + np.cumsum([0, *counts])[:-1]

    def __len__(self) -> int:
        return sum(-(-len(rows) // self._size) for rows, _ in self._parts)

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches of an epoch from step ``start`` on; the same arguments give the same batches."""
        random = np.random.default_rng([self._seed, epoch])
        plan = []
        for part, (rows, _) in enumerate(self._parts):
            order = self._order(part, len(rows), random)
            plan += [(part, order[at : at + self._size]) for at in range(0, len(rows), self._size)]
        if self._shuffle:
            plan = [plan[position] for position in random.permutation(len(plan))]
        for part, index in plan[start:]:
            share, of = self._share
            yield self._batch(part, index[len(index) * share // of : len(index) * (share + 1) // of])

    def each_row_once(self) -> Iterator[Batch]:
        """All rows in an order that no epoch changes, those of one user together."""
        for part, (order, _) in enumerate(self._sessions):
            for at in range(0, len(order), self._size):
                yield self._batch(part, order[at : at + self._size])

    def _batch(self, part: int, index: np.ndarray) -> Batch:
        rows, slot = self._parts[part]
        batch = self._batch_builder.batch(rows.take(index), slot)
        return batch if self._first_keys is None else replace(batch, key=_long(self._first_keys[part] + index))

    def _order(self, part: int, rows: int, random: np.random.Generator) -> np.ndarray:
        if not self._shuffle:
            return np.arange(rows)
        by_time, session = self._sessions[part]
        return by_time[np.argsort(random.permutation(int(session.max(initial=-1)) + 1)[session], kind="stable")]


def _sessions(rows: Examples, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows sorted by user and time, and the session of each: at most ``size`` neighbours of one user."""
    order = np.lexsort((rows.time_us, rows.user))
    user = rows.user[order]
    new_user = np.r_[True, user[1:] != user[:-1]] if len(user) else np.zeros(0, bool)
    first = np.maximum.accumulate(np.where(new_user, np.arange(len(user)), 0))
    starts = new_user | ((np.arange(len(user)) - first) % size == 0)
    return order, np.cumsum(starts) - 1


def _share(
    user: np.ndarray, start: np.ndarray, stop: np.ndarray, *, slack: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Let rows of one user whose windows nearly coincide read one stored history.

    Returns:
        group (B,) of each row; first (U,) absolute position and stored (U,) number of events of each stored history.
    """
    if (user == user[:1]).all() and (stop == stop[:1]).all() and len(user):
        # A request: one user at one time.
        first = start.min(keepdims=True)
        return np.zeros(len(user), np.int64), first, stop[:1] - first
    bucket = stop // slack
    key = np.unique(user, return_inverse=True)[1] * (int(bucket.max(initial=0)) + 1) + bucket
    group = np.unique(key, return_inverse=True)[1]
    groups = int(group.max(initial=-1)) + 1
    first = np.full(groups, np.iinfo(np.int64).max)
    last = np.zeros(groups, np.int64)
    np.minimum.at(first, group, start)
    np.maximum.at(last, group, stop)
    return group, first, last - first


def empty_events(rows: int) -> Events:
    """Histories of rows that have none."""
    nothing = torch.zeros((1, 1), dtype=torch.long)
    none = torch.zeros(rows, dtype=torch.long)
    return Events(
        item=nothing, action=nothing, value=nothing.float(), time=nothing, row=none, start=none, stop=none.clone()
    )


def _long(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.int64))


def _float(array: Any) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))

"""Histories and profiles into Feast: offline as Parquet, online in chunks, and single events the moment they happen.

The online store is written by two hands: ``materialise`` (everything, now and then) and ``push_events`` (a few
events, now). Both write whole histories, so both take the same lock, read what is online and keep every event that is
newer than what they bring. Feast itself does not: on SQLite a materialisation overwrites a fresher push.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from feast import FeatureStore
from feast.data_source import PushMode

from domains.events.domain_data import DomainData
from domains.events.histories import Histories, HistoryStore
from domains.events.vocabulary import Vocabulary
from domains.registry.registry import Domain
from feature_repo.definitions import EVENT_FIELDS, EVENT_VIEWS, HISTORY_EVENTS, RECENT_EVENTS, FeatureRepo, apply
from feature_repo.online import PushedEvent, read_events

logger = logging.getLogger(__name__)

CHUNK_ROWS = 5_000
CHUNK_EVENTS = 1_000_000
"""A chunk ends at either bound, so its memory does not grow with the number or the activity of users."""

CHUNK_BYTES = 32 * CHUNK_EVENTS
"""Of several row groups together, as they lie in memory."""

_TIMESTAMP = pa.timestamp("us", tz="UTC")
_EVENT_TYPES = {name: pa.float64() if name == "value" else pa.int64() for name in EVENT_FIELDS}
_TIMELESS = 0
"""Event time of profiles, which carry none of their own: true since the epoch."""

Progress = Callable[[float, str], None]


def materialise(
    repo: FeatureRepo,
    *,
    domains: Sequence[Domain],
    data_dir: Path,
    histories: Histories,
    users: Vocabulary,
    before_us: int | None = None,
    on_progress: Progress | None = None,
) -> int:
    """Apply the definitions, write every view's Parquet and bring the online store up to it. Safe to repeat.

    Returns how many rows kept events that had been pushed meanwhile.

    Args:
        before_us: only events strictly before this moment; None takes all. A row's Feast timestamp is one microsecond
            after its newest event, so a point-in-time join sees strictly the past, as training does.
    """
    progress = on_progress or (lambda *_: None)
    store = apply(repo)
    rows = {"user_profile": _write_profiles(repo, domains, data_dir, users)}
    progress(0.1, "profiles written offline")
    rows["user_history"] = _write_parquet(
        repo.offline_file("user_history"),
        _user_history(histories.source, users, before_us),
        _event_schema("user_history"),
    )
    rows["user_recent"] = _write_parquet(
        repo.offline_file("user_recent"),
        _user_recent(histories, domains, users, before_us),
        _event_schema("user_recent"),
    )
    progress(0.3, "histories written offline")
    total, done, kept = max(1, sum(rows.values())), 0, 0
    for view in rows:
        for chunk in _chunks(repo.offline_file(view)):
            kept += _write_online(repo, store, view, chunk)
            done += len(chunk)
            progress(0.3 + 0.7 * done / total, f"{view} online")
    logger.info("features materialised", extra={"rows": rows, "kept_fresher": kept})
    return kept


@dataclass(frozen=True)
class Push:
    """An event on its way into a user's online history.

    Args:
        target: name of the target domain it happened in, or None for a source domain's event.
        may_displace: whether it may take the place of the oldest event of a full history.
    """

    event: PushedEvent
    target: str | None
    may_displace: bool = True


def push_events(repo: FeatureRepo, store: FeatureStore, pushes: Sequence[Push]) -> int:
    """Add events to users' online histories at once, as the only writer. See ``add_events``."""
    with repo.online.writing():
        return add_events(store, pushes)


def add_events(store: FeatureStore, pushes: Sequence[Push]) -> int:
    """Add events, each history written once; what is there already stays as it is. Other writers must be held back.

    Returns how many were new.

    Args:
        store: this process's own store for writing.
    """
    added = 0
    for view in EVENT_VIEWS:
        mine: dict[tuple[str, ...], list[Push]] = {}
        for push in pushes:
            if (view == "user_recent") == (push.target is not None):
                key = (push.event.user_id,) if push.target is None else (push.event.user_id, push.target)
                mine.setdefault(key, []).append(push)
        if mine:
            added += _push_to(store, view, mine)
    return added


def _push_to(store: FeatureStore, view: str, pushes: Mapping[tuple[str, ...], Sequence[Push]]) -> int:
    """Add events to one view, by the keys of its rows."""
    keys = [dict(zip(_keys(view), key, strict=True)) for key in pushes]
    rows, added = [], 0
    for key, before, some in zip(keys, read_events(store, view, keys), pushes.values(), strict=True):
        held = before
        for push in some:
            if push.may_displace or len(held) < HISTORY_EVENTS:
                more = held.with_event(push.event, most=HISTORY_EVENTS)
                added, held = added + (more is not held), more
        if held is not before:
            rows.append(key | {name: getattr(held, name) for name in EVENT_VIEWS[view]})
    if rows:
        frame = pd.DataFrame([row | {"event_timestamp": datetime.now(UTC)} for row in rows])
        store.push(f"{view}_pushed", frame, to=PushMode.ONLINE)
    return added


def _write_online(repo: FeatureRepo, store: FeatureStore, view: str, chunk: pd.DataFrame) -> int:
    if view not in EVENT_VIEWS:
        store.write_to_online_store(view, chunk)
        return 0
    keys = list(_keys(view))
    with repo.online.writing():
        newest = chunk["time_us"].map(lambda times: times[-1]).to_numpy()
        online = read_events(store, view, chunk[keys].to_dict("records"), fields=("time_us",))
        fresher = [at for at, held in enumerate(online) if len(held.time_us) and held.time_us[-1] > newest[at]]
        whole = read_events(store, view, chunk[keys].iloc[fresher].to_dict("records")) if fresher else []
        for at, held in zip(fresher, whole, strict=True):
            extra = held.time_us > newest[at]
            for name in EVENT_VIEWS[view]:
                joined = np.concatenate([chunk[name].iloc[at], getattr(held, name)[extra]])
                chunk.at[chunk.index[at], name] = joined[-HISTORY_EVENTS:]
        store.write_to_online_store(view, chunk)
    return len(fresher)


def _user_history(source: HistoryStore, users: Vocabulary, before_us: int | None) -> Iterator[pa.Table]:
    for user, start, stop in _windows(source, before_us, HISTORY_EVENTS):
        yield _event_rows("user_history", {"user_id": _names(users, user)}, source, start, stop)


def _user_recent(
    histories: Histories, domains: Sequence[Domain], users: Vocabulary, before_us: int | None
) -> Iterator[pa.Table]:
    for domain in domains:
        target = histories.target.get(domain.name)
        if target is None:
            continue
        for user, start, stop in _windows(target, before_us, max(RECENT_EVENTS, domain.spec.history.short)):
            keys = {"user_id": _names(users, user), "domain": [domain.name] * len(user)}
            yield _event_rows("user_recent", keys, target, start, stop)


def _names(users: Vocabulary, user: np.ndarray) -> list[str]:
    return [users.name(int(index)) for index in user]


def _event_rows(
    view: str, keys: Mapping[str, Sequence[str]], store: HistoryStore, start: np.ndarray, stop: np.ndarray
) -> pa.Table:
    """Rows of a view, one for each window [start, stop) of the store."""
    offsets = np.concatenate([[0], np.cumsum(stop - start)])
    position = np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], stop - start)
    events = {
        name: pa.ListArray.from_arrays(
            pa.array(offsets, pa.int32()), pa.array(getattr(store, name)[position]).cast(_EVENT_TYPES[name])
        )
        for name in EVENT_VIEWS[view]
    }
    return pa.table(
        {**keys, **events, "event_timestamp": _timestamps(store.time_us[stop - 1] + 1)}, schema=_event_schema(view)
    )


def _windows(
    store: HistoryStore, before_us: int | None, length: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(user, start, stop) of every user who has events, in chunks of bounded rows and events."""
    before = np.iinfo(np.int64).max if before_us is None else before_us
    everyone = len(store.offsets) - 1
    for first in range(0, everyone, CHUNK_ROWS):
        user = np.arange(first, min(first + CHUNK_ROWS, everyone))
        start, stop = store.window(user, np.full(len(user), before, np.int64), length)
        some = stop > start
        user, start, stop = user[some], start[some], stop[some]
        part = np.cumsum(stop - start) // CHUNK_EVENTS
        for number in np.unique(part):
            here = part == number
            yield user[here], start[here], stop[here]


def _write_profiles(repo: FeatureRepo, domains: Sequence[Domain], data_dir: Path, users: Vocabulary) -> int:
    """One row for every known user, with what all domains together say of them.

    Where two domains give one feature of one user, the domain registered last is believed.
    """
    known: list[dict[str, str]] = [{} for _ in range(len(users))]
    for domain in sorted(domains, key=lambda domain: domain.number):
        table = DomainData(data_dir, domain.name).users()
        if table is None or domain.spec.users is None:
            continue
        index = users.index(table["user_id"].to_pylist())
        for name in domain.spec.users.features:
            # Arrow's own text, because the code books were fitted on it: 1.0 is "1" here and "1.0" in Python.
            for user, value in zip(index, pc.cast(table[name], pa.string()).to_pylist(), strict=True):
                if user and value is not None:
                    known[user][name] = value

    def tables() -> Iterator[pa.Table]:
        for first in range(1, len(known), CHUNK_ROWS):
            chunk = range(first, min(first + CHUNK_ROWS, len(known)))
            yield pa.table(
                {
                    "user_id": [users.name(index) for index in chunk],
                    "index": list(chunk),
                    "names": [list(known[index]) for index in chunk],
                    "values": [list(known[index].values()) for index in chunk],
                    "event_timestamp": _timestamps(np.full(len(chunk), _TIMELESS)),
                },
                schema=_PROFILE_SCHEMA,
            )

    return _write_parquet(repo.offline_file("user_profile"), tables(), _PROFILE_SCHEMA)


def _write_parquet(path: Path, tables: Iterator[pa.Table], schema: pa.Schema) -> int:
    """Write row group by row group and put the file in place whole."""
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    rows = 0
    with pq.ParquetWriter(temporary, schema) as writer:
        for table in tables:
            if len(table):
                writer.write_table(table, row_group_size=max(1, len(table)))
                rows += len(table)
    temporary.replace(path)
    return rows


def _chunks(path: Path) -> Iterator[pd.DataFrame]:
    """The rows of a file, as many small row groups at once as stay within the bounds: each write has its own cost, and
    every domain has a row group of its own."""
    with pq.ParquetFile(path) as file:
        groups: list[int] = []
        rows = size = 0
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            if groups and (rows + group.num_rows > CHUNK_ROWS or size + group.total_byte_size > CHUNK_BYTES):
                yield file.read_row_groups(groups).to_pandas()
                groups, rows, size = [], 0, 0
            groups, rows, size = [*groups, number], rows + group.num_rows, size + group.total_byte_size
        if groups:
            yield file.read_row_groups(groups).to_pandas()


def _timestamps(time_us: np.ndarray) -> pa.Array:
    return pa.array(np.asarray(time_us, np.int64), pa.int64()).cast(_TIMESTAMP)


def _keys(view: str) -> tuple[str, ...]:
    return ("user_id", "domain") if view == "user_recent" else ("user_id",)


def _event_schema(view: str) -> pa.Schema:
    return _schema(
        dict.fromkeys(_keys(view), pa.string()) | {name: pa.list_(_EVENT_TYPES[name]) for name in EVENT_VIEWS[view]}
    )


def _schema(fields: Mapping[str, pa.DataType]) -> pa.Schema:
    return pa.schema([*fields.items(), ("event_timestamp", _TIMESTAMP)])


_PROFILE_SCHEMA = _schema(
    {
        "user_id": pa.string(),
        "index": pa.int64(),
        "names": pa.list_(pa.string()),
        "values": pa.list_(pa.string()),
    }
)

"""The read plan: what one rank request asks of the online store, in one call."""

from __future__ import annotations

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from feast import FeatureService, FeatureStore

from feature_repo.definitions import EVENT_VIEWS, RANKING, FeatureRepo

_DTYPES = {"item": np.int64, "domain": np.int64, "action": np.int64, "value": np.float64, "time_us": np.int64}


class FeatureStoreDown(RuntimeError):
    """The online store does not answer, or its answer cannot be read."""


@dataclass(frozen=True)
class PushedEvent:
    """One thing that a user just did."""

    user_id: str
    item: int
    domain: int
    action: int
    value: float
    time_us: int


@dataclass(frozen=True)
class Events:
    """Parallel arrays of L events, oldest first.

    Shapes:
        item: (L,) int64, index in the item vocabulary of the event's domain
        domain: (L,) int64, number of the event's domain; empty where the events were read for one domain
        action: (L,) int64; value: (L,) float64; time_us: (L,) int64
    """

    item: np.ndarray
    domain: np.ndarray
    action: np.ndarray
    value: np.ndarray
    time_us: np.ndarray

    def __len__(self) -> int:
        return len(self.time_us)

    @classmethod
    def none(cls) -> Self:
        return cls(**{name: np.zeros(0, dtype) for name, dtype in _DTYPES.items()})

    def arrays(self) -> dict[str, np.ndarray]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def with_event(self, event: PushedEvent, *, most: int) -> Self:
        """The latest ``most`` of these events and a new one, by time; itself where it holds the event already."""
        same = (self.time_us == event.time_us) & (self.item == event.item) & (self.action == event.action)
        if len(self.domain):
            same &= self.domain == event.domain
        if same.any():
            return self
        at = int(np.searchsorted(self.time_us, event.time_us, side="right"))
        held = self.arrays()
        if len(self) and not len(self.domain):
            held["domain"] = np.full(len(self), event.domain, np.int64)
        return type(self)(**{name: np.insert(array, at, getattr(event, name))[-most:] for name, array in held.items()})


@dataclass(frozen=True)
class UserFeatures:
    """What is known of a user at this moment.

    ``index`` is the user's number in the user vocabulary, 0 for one who came after it was built. ``history`` holds
    source events, ``recent`` those of the asked target domain.
    """

    user_id: str
    index: int
    profile: Mapping[str, str]
    history: Events
    recent: Events


class OnlineFeatures:
    """Reads users from the online store; made once per process, used from any thread."""

    def __init__(self, repo: FeatureRepo) -> None:
        self._repo = repo
        self._opened: _Opened | None = None

    def read_user(self, user_id: str, domain: str) -> UserFeatures | None:
        """One user's profile, source history and recent events in ``domain``; None for a user nobody has seen.

        Raises:
            FeatureStoreDown: the store does not answer.
        """
        try:
            opened = self._open()
            values = _columns(opened.store, opened.service, [{"user_id": user_id, "domain": domain}])
        # Whatever a driver throws (SQLite, Redis, Feast's registry), the answer is the same: no features now.
        except Exception as error:
            self._close()
            raise FeatureStoreDown(_one_line(error)) from error
        index = values["user_profile__index"][0]
        known = index.WhichOneof("val") is not None
        history = _events(values, "user_history", 0)
        recent = _events(values, "user_recent", 0)
        if not known and not len(history) and not len(recent):
            return None
        names = values["user_profile__names"][0].string_list_val.val
        return UserFeatures(
            user_id=user_id,
            index=index.int64_val if known else 0,
            profile=dict(zip(names, values["user_profile__values"][0].string_list_val.val, strict=True)),
            history=history,
            recent=recent,
        )

    def refresh(self) -> None:
        """Where the definitions changed, load them beside the old ones and take them over once they have answered.

        A store's first read costs up to a second; no request pays for it.
        """
        opened = self._opened
        try:
            if opened is None or opened.definitions == self._repo.definitions_stamp():
                return
            fresh = self._fresh()
            _columns(fresh.store, fresh.service, [{"user_id": "-", "domain": "-"}])
        # Whatever is wrong, the next read finds it and says so.
        except Exception:
            self._close()
            return
        self._opened, opened = fresh, None
        gc.collect()

    def _open(self) -> _Opened:
        identity = self._repo.online.identity()
        opened = self._opened
        if opened is None or opened.identity != identity:
            opened = self._opened = self._fresh()
        return opened

    def _fresh(self) -> _Opened:
        # What it is opened on first: a store that is replaced in between is then opened once more.
        identity, definitions = self._repo.online.identity(), self._repo.definitions_stamp()
        store = self._repo.store(impatient=True)
        return _Opened(store, store.get_feature_service(RANKING), identity, definitions)

    def _close(self) -> None:
        if self._opened is not None:
            self._opened = None
            # Feast's stores know no end, and lie in circles: their open files would stay for as long as the process.
            gc.collect()


@dataclass(frozen=True)
class _Opened:
    store: FeatureStore
    service: FeatureService
    identity: object
    definitions: object


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def read_events(
    store: FeatureStore, view: str, keys: Sequence[Mapping[str, Any]], *, fields: Sequence[str] | None = None
) -> list[Events]:
    """Events that are online now, one for each key; fields not asked for stay empty."""
    values = _columns(store, [f"{view}:{name}" for name in fields or EVENT_VIEWS[view]], keys)
    return [_events(values, view, row) for row in range(len(keys))]


def _columns(store: FeatureStore, features: Any, keys: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    answer = store.get_online_features(
        features=features, entity_rows=[dict(key) for key in keys], full_feature_names=True
    )
    # Straight from the message: `to_dict` builds a Python list of every array. Columns come in another order than they
    # were asked for, hence by name.
    return {
        name: column.values
        for name, column in zip(answer.proto.metadata.feature_names.val, answer.proto.results, strict=True)
    }


def _events(values: Mapping[str, Any], view: str, row: int) -> Events:
    arrays = {}
    for name, dtype in _DTYPES.items():
        column = values.get(f"{view}__{name}")
        if column is None:
            arrays[name] = np.zeros(0, dtype)
        else:
            cell = column[row]
            held = cell.double_list_val.val if dtype is np.float64 else cell.int64_list_val.val
            arrays[name] = np.fromiter(held, dtype, len(held))
    return Events(**arrays)

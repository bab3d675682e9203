"""What Feast knows, all of it, in one file with one writer: ``apply``.

    entity user               user_profile, user_history (source events)
    entities user and domain  user_recent (events in one target domain)

    feature service ranking = user_profile + user_history + user_recent: one read per request

The schema does not depend on which domains are registered, so a new domain needs no new definitions: profiles are
(name, value) pairs, and ``user_recent`` is one view for all domains. That also keeps column names of a team's file
(spaces, colons, a column called "user") out of Feast's own name space.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from string import Template
from typing import Any

import yaml
from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, PushSource, RepoConfig
from feast.types import Array, Float64, Int64, String
from feast.value_type import ValueType

from feature_repo.online_stores import ONLINE_STORES, OnlineStore

logger = logging.getLogger(__name__)

HISTORY_EVENTS = 2_000
"""Source events kept online for each user, the latest."""
RECENT_EVENTS = 200
"""Events kept for each user and target domain, at least; no network reads more of its short history."""
EVENT_FIELDS = ("item", "domain", "action", "value", "time_us")
"""Parallel arrays of a history: local item index, domain number, action code, value, microseconds since the epoch."""
EVENT_VIEWS = {"user_history": EVENT_FIELDS, "user_recent": tuple(name for name in EVENT_FIELDS if name != "domain")}
"""Fields of each view that holds events; the domain of recent events is the one they are asked for."""
RANKING = "ranking"

_MARKER = '''"""Written by feature_repo.definitions.apply: `feast apply` in this folder finds what is there already."""

from pathlib import Path

from feature_repo.definitions import FeatureRepo, objects

for _position, _object in enumerate(objects(FeatureRepo(Path(__file__).parent))):
    globals()[f"feast_object_{_position}"] = _object
'''


@dataclass(frozen=True)
class FeatureRepo:
    """Where the features of one installation live.

    Args:
        folder: holds the offline Parquet, Feast's registry and the SQLite online store.
        online_store: a name of ``ONLINE_STORES``.
        online_store_address: where that store answers, in its own notation; empty for its usual place.
    """

    folder: Path
    online_store: str = "sqlite"
    online_store_address: str = ""

    @property
    def root(self) -> Path:
        # Feast resolves relative paths against whatever folder it was started from.
        return self.folder.absolute()

    @property
    def online(self) -> OnlineStore:
        return ONLINE_STORES[self.online_store](self.root, self.online_store_address)

    def offline_file(self, view: str) -> Path:
        return self.root / "offline" / f"{view}.parquet"

    def definitions_stamp(self) -> object:
        """Another value once the definitions were applied again.

        Raises:
            OSError: they never were, or are gone.
        """
        status = (self.root / "registry.db").stat()
        return status.st_ino, status.st_mtime_ns, status.st_size

    def settings_text(self, *, impatient: bool = False) -> str:
        """feature_store.yaml with absolute paths."""
        template = Template((Path(__file__).parent / "feature_store.yaml").read_text())
        online_store = self.online.feast_settings(impatient=impatient)
        return template.substitute(folder=self.root, online_store=json.dumps(online_store))

    def store(self, *, impatient: bool = False) -> FeatureStore:
        """A Feast store of its own: its own registry cache and its own connection.

        Args:
            impatient: for reads that a request waits for, which would rather fail than wait.
        """
        config = yaml.safe_load(self.settings_text(impatient=impatient))
        return FeatureStore(config=RepoConfig(**config, repo_path=self.root))


def objects(repo: FeatureRepo) -> list[Any]:
    """All entities, views and services."""
    user = Entity(name="user", join_keys=["user_id"], value_type=ValueType.STRING, description="A person")
    domain = Entity(
        name="domain", join_keys=["domain"], value_type=ValueType.STRING, description="A recommendation surface"
    )
    events = [
        Field(name="item", dtype=Array(Int64), description="Index in the item vocabulary of the event's domain"),
        Field(name="domain", dtype=Array(Int64), description="Number of the event's domain"),
        Field(name="action", dtype=Array(Int64), description="Code of the action; 0 is unknown"),
        Field(name="value", dtype=Array(Float64), description="Label of the event in its domain's unit"),
        Field(name="time_us", dtype=Array(Int64), description="Microseconds since the epoch, oldest first"),
    ]
    pairs = [Field(name="names", dtype=Array(String)), Field(name="values", dtype=Array(String))]
    user_profile = FeatureView(
        name="user_profile",
        entities=[user],
        ttl=timedelta(0),
        schema=[Field(name="index", dtype=Int64, description="Index in the user vocabulary"), *pairs],
        source=_parquet(repo, "user_profile"),
    )
    user_history = FeatureView(
        name="user_history",
        entities=[user],
        ttl=timedelta(0),
        schema=events,
        source=PushSource(name="user_history_pushed", batch_source=_parquet(repo, "user_history")),
    )
    user_recent = FeatureView(
        name="user_recent",
        entities=[user, domain],
        ttl=timedelta(0),
        schema=[field for field in events if field.name in EVENT_VIEWS["user_recent"]],
        source=PushSource(name="user_recent_pushed", batch_source=_parquet(repo, "user_recent")),
    )
    return [
        user,
        domain,
        user_profile,
        user_history,
        user_recent,
        FeatureService(name=RANKING, features=[user_profile, user_history, user_recent]),
    ]


def apply(repo: FeatureRepo) -> FeatureStore:
    """Make Feast's registry and online tables say what this file says. Safe to repeat."""
    repo.offline_file("user_profile").parent.mkdir(parents=True, exist_ok=True)
    _write(repo.root / "feature_store.yaml", repo.settings_text())
    _write(repo.root / "feast_objects.py", _MARKER)
    repo.online.prepare()
    store = repo.store()
    store.apply(objects(repo))
    logger.info("feature definitions applied", extra={"folder": str(repo.root), "online_store": repo.online_store})
    return store


def _parquet(repo: FeatureRepo, view: str) -> FileSource:
    return FileSource(name=f"{view}_offline", path=str(repo.offline_file(view)), timestamp_field="event_timestamp")


def _write(path: Path, text: str) -> None:
    """Replace a file, unless it says so already; nobody else reads it, as an address may hold a password."""
    if path.exists() and path.read_text() == text and not path.stat().st_mode & 0o077:
        return
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)

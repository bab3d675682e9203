"""The online stores that Feast can use here. To add one, write a class and enter it in ``ONLINE_STORES``.

Settings name a row of that table and give an address; nothing outside this file tells one store from another.
"""

from __future__ import annotations

import fcntl
import json
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class OnlineStore(ABC):
    """What differs from one online store to the next.

    Args:
        folder: the features folder of the installation, absolute.
        address: where the store answers, in its own notation; empty where it needs none or has a usual one.
    """

    folder: Path
    address: str = ""

    @abstractmethod
    def feast_settings(self, *, impatient: bool = False) -> dict[str, Any]:
        """The ``online_store`` section of feature_store.yaml.

        Args:
            impatient: for reads that a request waits for, which would rather fail than wait.
        """

    def prepare(self) -> None:  # noqa: B027 (most stores need none)
        """Set the store up before definitions are applied. Safe to repeat."""

    def identity(self) -> object:
        """Another value once the store has been replaced under connections that are open.

        Raises:
            OSError: the store is gone.
        """
        return None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold back every other writer of histories, in all processes that share the features folder."""
        with open(self.folder / "writing.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


class SqliteStore(OnlineStore):
    """One file in the features folder."""

    @property
    def file(self) -> Path:
        return self.folder / "online.db"

    def feast_settings(self, *, impatient: bool = False) -> dict[str, Any]:  # noqa: ARG002 (Feast's own wait is fixed)
        return {"type": "sqlite", "path": str(self.file)}

    def prepare(self) -> None:
        with sqlite3.connect(self.file) as connection:
            # Readers go on while a chunk is being written.
            connection.execute("pragma journal_mode = wal")
        connection.close()

    def identity(self) -> object:
        # A connection outlives its file: without this a deleted store would go on answering, ever more stale.
        status = self.file.stat()
        return status.st_dev, status.st_ino


class RedisStore(OnlineStore):
    """A Redis server; its address is ``host:port[,password=...]``, as Feast writes it."""

    def _node(self) -> tuple[str, dict[str, str]]:
        """``host:port`` and the options of the address."""
        node, *options = (self.address or "localhost:6379").split(",")
        return node, {name: value for name, _, value in (option.partition("=") for option in options)}

    def feast_settings(self, *, impatient: bool = False) -> dict[str, Any]:
        node, options = self._node()
        # The client's own three retries, with pauses in between, make seconds of one dead server; Feast reads these
        # values as JSON, so null is no retry at all. What the address says counts more.
        waits = _IMPATIENT if impatient else _PATIENT
        return {
            "type": "redis",
            "connection_string": ",".join([node, *(f"{name}={value}" for name, value in (waits | options).items())]),
            # `materialise` keeps what is fresher, the same way for every store.
            "skip_dedup": True,
        }

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Hold back every other writer of histories, on all machines."""
        import redis

        node, options = self._node()
        host, _, port = node.partition(":")
        parameters = {name: _json_or_text(value) for name, value in (_PATIENT | options).items()}
        with (
            redis.Redis(host=host, port=int(port or 6379), **parameters) as client,
            client.lock("graft:features:writing", timeout=60, blocking_timeout=60),
        ):
            yield


_IMPATIENT = {"socket_timeout": "0.25", "socket_connect_timeout": "0.25", "retry": "null"}
_PATIENT = {"socket_timeout": "5", "socket_connect_timeout": "2"}


def _json_or_text(value: str) -> Any:
    """A value of a connection string as Feast reads it: ``ssl=true`` is a truth, ``db=2`` a number."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


ONLINE_STORES: dict[str, type[OnlineStore]] = {"sqlite": SqliteStore, "redis": RedisStore}

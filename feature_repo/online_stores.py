"""The online stores that Feast can use here. To add one, write a class and enter it in ``ONLINE_STORES``.

Settings name a row of that table and give an address; nothing outside this file tells one store from another.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import redis
    from redis.lock import Lock

_MARK = "pushed_up_to"
_LOCK = "graft:features:writing"
_LEASE_S = 5.0
"""How long the writers' lock in Redis outlives a writer that died."""


class Marks(Protocol):
    """Up to which feedback everything has been pushed into a store.

    Where a store can lose writes, a mark must be one of them: lost as they are, it says from where on to push again.
    """

    def read(self) -> int | None:
        """The last one; None where the store has none, as when it was emptied."""

    def write(self, up_to: int) -> None:
        """Note how far it got."""


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
    def writing(self) -> Iterator[Marks]:
        """Hold back every other writer of histories, in all processes that share the features folder."""
        with open(self.folder / "writing.lock", "a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            with self.marks() as marks:
                yield marks

    @contextmanager
    def marks(self) -> Iterator[Marks]:
        """The marks of the store as it is now; one that takes its place meanwhile gets none of them."""
        yield _FileMarks(self.folder / _MARK)


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

    @contextmanager
    def marks(self) -> Iterator[Marks]:
        # As a URI: a file that is gone stays gone. The connection stays with the file that it found.
        with closing(sqlite3.connect(f"{self.file.as_uri()}?mode=rw", uri=True, timeout=5.0)) as connection:
            yield _SqliteMarks(connection)


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
    def writing(self) -> Iterator[Marks]:
        """Hold back every other writer of histories, on all machines.

        Raises:
            redis.exceptions.LockNotOwnedError: this process stood still for so long that another took the lock.
        """
        with (
            self._client() as client,
            client.lock(_LOCK, timeout=_LEASE_S, blocking_timeout=60, thread_local=False) as lock,
            _kept_alive(lock),
            self.marks() as marks,
        ):
            yield marks

    @contextmanager
    def marks(self) -> Iterator[Marks]:
        # One connection, which breaks with the server: the next one may come back without what this one was given.
        with self._client(single_connection_client=True) as client:
            yield _RedisMarks(client)

    def _client(self, **more: Any) -> redis.Redis:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        node, options = self._node()
        host, _, port = node.partition(":")
        # Whoever writes tries again as a whole: a store that is away must not hold a thread for many timeouts.
        waits = {"retry": Retry(NoBackoff(), 0)}
        parameters = {name: _json_or_text(value) for name, value in (_PATIENT | options).items()}
        return redis.Redis(host=host, port=int(port or 6379), **{**waits, **parameters, **more})


class _FileMarks:
    def __init__(self, file: Path) -> None:
        self._file = file

    def read(self) -> int | None:
        try:
            return int(self._file.read_text())
        except FileNotFoundError:
            return None

    def write(self, up_to: int) -> None:
        temporary = self._file.with_suffix(f".{os.getpid()}")
        temporary.write_text(str(up_to))
        temporary.replace(self._file)


class _SqliteMarks:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def read(self) -> int | None:
        if not self._connection.execute("select 1 from sqlite_master where name = ?", [_MARK]).fetchone():
            return None
        found = self._connection.execute(f"select value from {_MARK}").fetchone()
        return None if found is None else int(found[0])

    def write(self, up_to: int) -> None:
        with self._connection:
            self._connection.execute(
                f"create table if not exists {_MARK} (one integer primary key check (one = 1), value)"
            )
            self._connection.execute(f"insert or replace into {_MARK} values (1, ?)", [up_to])


class _RedisMarks:
    def __init__(self, client: redis.Redis) -> None:
        self._client = client

    def read(self) -> int | None:
        found: Any = self._client.get(f"graft:{_MARK}")
        return None if found is None else int(found)

    def write(self, up_to: int) -> None:
        self._client.set(f"graft:{_MARK}", up_to)


@contextmanager
def _kept_alive(lock: Lock) -> Iterator[None]:
    """Renew a lock with a lease until the end of the block."""
    from redis.exceptions import RedisError

    done = threading.Event()

    def renew() -> None:
        while not done.wait(_LEASE_S / 4):
            # A lease that could not be renewed is found out when the lock is released.
            with contextlib.suppress(RedisError):
                lock.reacquire()

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


_IMPATIENT = {"socket_timeout": "0.25", "socket_connect_timeout": "0.25", "retry": "null"}
_PATIENT = {"socket_timeout": "5", "socket_connect_timeout": "2"}


def _json_or_text(value: str) -> Any:
    """A value of a connection string as Feast reads it: ``ssl=true`` is a truth, ``db=2`` a number."""
    try:
        return json.loads(value)
    except json.JSONDecodeError:
        return value


ONLINE_STORES: dict[str, type[OnlineStore]] = {"sqlite": SqliteStore, "redis": RedisStore}

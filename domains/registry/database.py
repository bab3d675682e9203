"""One database, two dialects: SQLite in a file, or PostgreSQL by URL. Hides every difference between them.

A write on either takes one lock first and holds it until it commits: ``BEGIN IMMEDIATE`` on SQLite, the row of a
counter on PostgreSQL. So two writes never interleave, counters grow in the order of commits, and no write ever waits
for a lock while it holds another. Reads take no lock and never wait.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from weakref import WeakSet

import orjson
from sqlalchemy import Connection, DateTime, Engine, TypeDecorator, create_engine, event, make_url, text
from sqlalchemy.engine import URL, Dialect
from sqlalchemy.exc import ArgumentError, InvalidatePoolError, OperationalError
from sqlalchemy.pool import Pool, QueuePool

from domains.errors import DomainFault, RoleRefused

LOCK_TIMEOUT_S = 30

Counter = Literal["domain_number", "generation", "feedback"]


class UtcTime(TypeDecorator[datetime]):
    """A point in time. SQLite forgets the zone and PostgreSQL answers in the session's: both come back in UTC."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        return None if value is None else in_utc(value)

    def process_result_value(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        return None if value is None else in_utc(value)


def in_utc(time: datetime) -> datetime:
    """The same time in UTC; a naive time is taken to be UTC."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def now() -> datetime:
    return datetime.now(UTC)


class Database:
    """Transactions on ``sqlite:///path``, ``sqlite://`` (in memory) or ``postgresql://...``.

    Args:
        wait_s: how long to wait for a lock, a connection or an answer.
        read_only: refuse every write, whoever asks.

    Raises:
        DomainFault: the URL names neither SQLite nor PostgreSQL.
    """

    def __init__(self, url: str, *, wait_s: float = LOCK_TIMEOUT_S, read_only: bool = False) -> None:
        self.url = _understood(url)
        self._read_only = read_only
        self.engine = _postgresql(self.url, wait_s) if self.is_postgresql else _sqlite(self.url, wait_s)
        _ENGINES.add(self.engine)
        self._writer = self.engine.execution_options(graft_writes=True)
        self._hasty_writer = self.engine.execution_options(graft_writes=True, graft_hasty=True)
        # No read needs a snapshot: on PostgreSQL a transaction around it would be two more trips to the server.
        self._reader = (
            self.engine.execution_options(isolation_level="AUTOCOMMIT") if self.is_postgresql else self.engine
        )

    @property
    def is_postgresql(self) -> bool:
        return self.url.get_backend_name() == "postgresql"

    def identity(self) -> tuple[int, int] | None:
        """Device and inode of SQLite's file: others once it was replaced. None for any other database.

        Raises:
            OSError: the file is gone.
        """
        return None if self.is_postgresql else _identity(self.url)

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A connection for reading alone; it waits for no writer."""
        with self._reader.connect() as connection:
            yield connection

    @contextmanager
    def write(self, lock: Counter | None = "generation", *, durable: bool = True) -> Iterator[Connection]:
        """One transaction, alone among those with the same lock; committed at the end, undone by an exception.

        Args:
            lock: None takes no turns, which on SQLite all writers do nevertheless.
            durable: wait until the disk holds it; otherwise a power cut may lose it, but not the death of a process.

        Raises:
            RoleRefused: this is a view for reading.
        """
        self._refuse_if_read_only()
        with (self._writer if durable else self._hasty_writer).begin() as connection:
            if self.is_postgresql and not durable:
                connection.execute(text("SET LOCAL synchronous_commit = off"))
            if self.is_postgresql and lock is not None:
                connection.execute(text("SELECT value FROM counters WHERE name = :name FOR UPDATE"), {"name": lock})
            yield connection
            # What would go into a file that was replaced meanwhile must not be acknowledged.
            if connection.info.get("identity") != (None if self.is_postgresql else _identity_or_gone(self.url)):
                reason = sqlite3.OperationalError("the registry's file was replaced during a write")
                raise OperationalError("COMMIT", None, reason)

    @contextmanager
    def change_tables(self) -> Iterator[Connection]:
        """One transaction for a migration, alone among all migrations; DDL is undone too when it raises.

        Raises:
            RoleRefused: this is a view for reading.
        """
        self._refuse_if_read_only()
        if not self.is_postgresql and self.url.database:
            Path(self.url.database).parent.mkdir(parents=True, exist_ok=True)
            if _in_file(self.url):
                Path(self.url.database).touch(mode=0o600)
        with self._writer.begin() as connection:
            if self.is_postgresql:
                connection.execute(text("SELECT pg_advisory_xact_lock(hashtext('graft registry migration'))"))
            yield connection

    def _refuse_if_read_only(self) -> None:
        if self._read_only:
            raise RoleRefused("this view of the registry only reads; whoever changes something is asked for a role")


class Verbs:
    """Base of the registry's parts: each verb is one transaction on the same database and gives frozen values back."""

    def __init__(self, database: Database) -> None:
        self._database = database


def advance(connection: Connection, counter: Counter, by: int = 1) -> int:
    """Add to a counter in this transaction and give its new value."""
    statement = text("UPDATE counters SET value = value + :by WHERE name = :name RETURNING value")
    return int(connection.execute(statement, {"by": by, "name": counter}).scalar_one())


def finite(value: float | None) -> float | None:
    """A number that both databases store alike: not-a-number and infinities become None."""
    return None if value is None or not math.isfinite(value) else value


def check_url(url: str) -> None:
    """Refuse what a registry that lasts cannot be stored in.

    Raises:
        ValueError: it is no URL, of another kind of database, or of SQLite's memory; never shows any part of it.
    """
    try:
        parsed = _understood(url)
    except DomainFault as fault:
        raise ValueError(fault.message.removeprefix("GRAFT_DATABASE_URL: ")) from None
    if parsed.get_backend_name() == "sqlite" and not _in_file(parsed):
        raise ValueError("names no file, so the registry would be gone with this process")


def _understood(url: str) -> URL:
    # A password may hold what ends or divides a URL. Parts of it would then pass for a host, a port or a name, and
    # stand in the errors of whoever tries to reach them.
    address = url.partition("://")[2]
    authority = re.split(r"[/?#]", address, maxsplit=1)[0]
    if address.count("@") > 1 or "@" in address[len(authority) :] or re.search(r"%(?![0-9A-Fa-f]{2})", authority):
        raise _wrong_url(
            "special characters of the user or the password must be encoded (@ is %40, : is %3A, "
            "/ is %2F, # is %23, ? is %3F, % is %25)"
        )
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # SQLAlchemy makes a number of the port, and says what it found there
        raise _wrong_url("must be a URL such as sqlite:////path/registry.db or postgresql://user@host/name") from None
    if parsed.get_backend_name() in ("postgresql", "postgres"):
        return parsed.set(drivername="postgresql+psycopg")
    if parsed.get_backend_name() == "sqlite":
        return parsed.set(drivername="sqlite+pysqlite")
    raise _wrong_url(f"the registry is stored in SQLite or PostgreSQL, not in {parsed.get_backend_name()}")


def _wrong_url(problem: str) -> DomainFault:
    return DomainFault(f"GRAFT_DATABASE_URL: {problem}", field="GRAFT_DATABASE_URL")


def _json(value: Any) -> str:
    # orjson writes not-a-number as null, which PostgreSQL's JSONB demands, and takes numpy's scalars and arrays.
    return orjson.dumps(value, default=str, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS).decode()


def _postgresql(url: URL, wait_s: float) -> Engine:
    engine = create_engine(
        url,
        # After the lock is granted, each statement sees what the one before it in line committed.
        isolation_level="READ COMMITTED",
        json_serializer=_json,
        json_deserializer=orjson.loads,
        pool_pre_ping=True,
        pool_size=8,
        max_overflow=24,
        pool_timeout=2 * wait_s,
        connect_args={"connect_timeout": max(2, int(wait_s))},  # the driver takes a shorter one for two seconds
    )

    @event.listens_for(engine, "connect")
    def bound_waits(connection: Any, _record: Any) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = '{int(wait_s * 1e3)}ms'")
            if wait_s < LOCK_TIMEOUT_S:
                cursor.execute(f"SET statement_timeout = '{int(wait_s * 1e3)}ms'")
            # A client that hangs inside a transaction holds the writers' lock; the server ends it.
            cursor.execute(f"SET idle_in_transaction_session_timeout = '{2 * LOCK_TIMEOUT_S}s'")
        connection.commit()

    return engine


def _sqlite(url: URL, wait_s: float) -> Engine:
    in_memory = not _in_file(url)
    engine = create_engine(
        url,
        json_serializer=_json,
        json_deserializer=orjson.loads,
        poolclass=QueuePool,
        # A database in memory is its one connection, so threads take turns on it.
        pool_size=1 if in_memory else 8,
        max_overflow=0 if in_memory else 24,
        pool_timeout=2 * wait_s,
        connect_args={"check_same_thread": False, "timeout": wait_s},
    )

    @event.listens_for(engine, "do_connect")
    def open_existing(_dialect: Any, _record: Any, _arguments: Any, options: dict[str, Any]) -> Any:
        if in_memory:
            return None
        # Only a migration makes the file: whoever finds it gone must say so, and not go on with an empty one.
        return sqlite3.connect(f"{Path(str(url.database)).absolute().as_uri()}?mode=rw", uri=True, **options)

    @event.listens_for(engine, "checkout")
    def refuse_replaced(_connection: Any, record: Any, _proxy: Any) -> None:
        # A connection outlives its file: without this, writes would go on into one that a restored backup replaced.
        if record.info.get("identity") != _identity_or_gone(url):
            if not in_memory:
                _remove_old_log(url, record.info.get("log"))
            raise InvalidatePoolError("the registry's file was replaced")

    @event.listens_for(engine, "checkin")
    def note_log(_connection: Any, record: Any) -> None:
        # The log comes with the first transaction and stays while a connection is open.
        if not in_memory and not record.info.get("log") and record.info.get("identity") == _identity_or_gone(url):
            record.info["log"] = _log_of(url)

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        record.info["identity"] = _identity_or_gone(url)
        connection.isolation_level = None  # the driver must not begin transactions on its own: see `begin`
        connection.execute(f"PRAGMA busy_timeout = {int(wait_s * 1000)}")
        _write_ahead(connection, wait_s)
        connection.execute("PRAGMA foreign_keys = ON")

    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _begin_sqlite(connection: Connection) -> None:
    options = connection.get_execution_options()
    if not options.get("graft_writes"):
        connection.exec_driver_sql("BEGIN")
        return
    # With FULL, what was acknowledged survives a power cut too.
    connection.exec_driver_sql(f"PRAGMA synchronous = {'NORMAL' if options.get('graft_hasty') else 'FULL'}")
    # A deferred transaction that reads first and writes later fails at once when another wrote in between.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _in_file(url: URL) -> bool:
    return url.database not in (None, "", ":memory:")


def _identity(url: URL) -> tuple[int, int] | None:
    if not _in_file(url):
        return None
    status = os.stat(str(url.database))
    return status.st_dev, status.st_ino


def _identity_or_gone(url: URL) -> tuple[int, int] | None:
    try:
        return _identity(url)
    except OSError:
        return (0, 0)


def _log_of(url: URL) -> int | None:
    try:
        return os.stat(f"{url.database}-wal").st_ino
    except OSError:
        return None


def _remove_old_log(url: URL, log: int | None) -> None:
    """Remove the write-ahead log of a file that was replaced; SQLite would play it into the new one.

    Args:
        log: inode of the log that the file had.
    """
    with contextlib.suppress(OSError):
        found, file = os.stat(f"{url.database}-wal"), os.stat(str(url.database))
        # Of the same inode, and not written since the new file took its place: nothing of the new file is in it.
        if found.st_ino == log and found.st_mtime_ns <= file.st_ctime_ns:
            for ending in ("-wal", "-shm"):
                Path(f"{url.database}{ending}").unlink(missing_ok=True)


def _write_ahead(connection: Any, wait_s: float) -> None:
    """Readers and the writer then never wait for each other; the file remembers it.

    Switching a new file does not heed the busy timeout, so processes that start together must try again themselves.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def _leave_connections_to_the_parent() -> None:
    """After a fork, the child opens connections of its own: two processes on one connection corrupt both."""
    for engine in _ENGINES:
        _INHERITED.append(engine.pool)  # held, for closing the parent's connection would end the parent's session
        engine.dispose(close=False)


_ENGINES: WeakSet[Engine] = WeakSet()
_INHERITED: list[Pool] = []
os.register_at_fork(after_in_child=_leave_connections_to_the_parent)

"""The registry: what exists, what runs, what answers, and who changed it when.

Each verb is one transaction that gives frozen values back; rows never leave. Every verb is safe to repeat, and safe to
race: writers take turns, and a pointer moves only by compare-and-set (docs/decisions/0002-registry.md). Lists come
newest first unless they say otherwise.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select, text

from domains.registry import migrations
from domains.registry.database import LOCK_TIMEOUT_S, Database
from domains.registry.domain_verbs import DomainVerbs
from domains.registry.key_verbs import KeyVerbs
from domains.registry.outbox import Outbox
from domains.registry.prediction_log import PredictionLog
from domains.registry.records import Domain, Live, Promotion, Run, Version, note
from domains.registry.request_ids import RequestIds
from domains.registry.retention_verbs import RetentionVerbs
from domains.registry.run_verbs import RunVerbs
from domains.registry.tables import audit
from domains.registry.user_verbs import UserVerbs
from domains.registry.version_verbs import VersionVerbs

__all__ = ["Domain", "Live", "Promotion", "Registry", "Run", "Version"]

_GENERATION = text("SELECT value FROM counters WHERE name = 'generation'")


class Registry(
    DomainVerbs, RunVerbs, VersionVerbs, KeyVerbs, UserVerbs, PredictionLog, RequestIds, Outbox, RetentionVerbs
):
    """The registry in the database at ``url``; threads may share one, processes each build their own.

    Args:
        wait_s: how long a verb waits for a lock, a connection or an answer of the database.
        read_only: every verb that changes something raises RoleRefused.

    Raises:
        DomainFault: the URL names neither SQLite nor PostgreSQL.
    """

    def __init__(self, url: str, *, wait_s: float = LOCK_TIMEOUT_S, read_only: bool = False) -> None:
        super().__init__(Database(url, wait_s=wait_s, read_only=read_only))

    def migrate(self) -> None:
        """Create the tables or bring them up to date; cheap when there is nothing to do, safe to race."""
        with self._database.change_tables() as connection:
            migrations.upgrade(connection)

    def close(self) -> None:
        """Close the connections; the next verb opens new ones."""
        self._database.engine.dispose()

    def generation(self) -> int:
        """A number that grows with every change that a server must notice: a pointer that moves, a domain registered or
        changed, a state, new data. Servers poll it, one indexed read, and read the rest only when it has grown."""
        with self._database.read() as connection:
            return int(connection.execute(_GENERATION).scalar_one())

    def check_writable(self) -> None:
        """Take the lock that every write takes, and let it go: raises what a write would."""
        with self._database.write():
            return

    def note(self, who: str, what: str, domain: str | None = None, why: str = "", **details: Any) -> None:
        """Write an entry of the audit log that belongs to no other verb, such as a refusal."""
        with self._database.write() as connection:
            note(connection, who, what, domain, why, **details)

    def identity(self) -> object:
        """Another value once the database was replaced by another one under the same URL, as by a restored backup.

        Raises:
            OSError: SQLite's file is gone.
        """
        return self._database.identity()

    def audit(
        self,
        domain: str | None = None,
        limit: int | None = 1000,
        *,
        since: datetime | None = None,
        what: str | None = None,
    ) -> list[dict[str, Any]]:
        """Who did what to which domain, when and why: dicts of id, at, who, what, domain, why, details.

        Entries are only ever added: the database itself refuses to change or delete one.
        """
        chosen = select(audit).order_by(audit.c.id.desc()).limit(limit)
        if domain is not None:
            chosen = chosen.where(audit.c.domain == domain)
        if what is not None:
            chosen = chosen.where(audit.c.what == what)
        if since is not None:
            chosen = chosen.where(audit.c.at >= since)
        with self._database.read() as connection:
            return [row._asdict() for row in connection.execute(chosen)]

"""Whose a request id is: an id names one ranking of one user in one domain, whichever process answers it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, Table, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from domains.registry.database import Verbs
from domains.registry.tables import feedback, predictions, request_ids

_IDS_PER_LOOKUP = 500


@dataclass(frozen=True)
class Asked:
    """Who asked for a ranking, in which domain and when."""

    domain: str
    user_id: str
    at: datetime


class RequestIds(Verbs):
    """The verbs on request ids."""

    def answered(self, ids: set[str]) -> dict[str, Asked]:
        """The domain, the user and the time of each of these requests that is on record."""
        with self._database.read() as connection:
            return asked_under(connection, ids)

    def claim_request(self, request_id: str, asked: Asked) -> Asked:
        """Hold an id for who asks, unless it is held already; returns whose it is.

        The claim outlives this process, but perhaps not the machine: the predictions that follow it do neither.
        """
        with self._database.write(lock=None, durable=False) as connection:
            found = holders(connection, {request_id})
            if not found:
                dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
                row = {"request_id": request_id, "domain": asked.domain, "user_id": asked.user_id, "at": asked.at}
                connection.execute(dialect.insert(request_ids).values(row).on_conflict_do_nothing())
                # Read again: where writers do not take turns, another may have been first.
                found = holders(connection, {request_id})
        return found.get(request_id, asked)

    def forget_claims(self, before: datetime) -> int:
        """Delete claims that are older and that no prediction followed; returns how many."""
        with self._database.write(lock="feedback") as connection:
            return connection.execute(delete(request_ids).where(request_ids.c.at < before)).rowcount


def asked_under(connection: Connection, ids: set[str]) -> dict[str, Asked]:
    """The rankings of these ids: as written down, else as claimed."""
    return _held_in(connection, request_ids, ids) | _held_in(connection, predictions, ids)


def holders(connection: Connection, ids: set[str]) -> dict[str, Asked]:
    """Whose these ids are: of who asked, or of who was first to send feedback under an id of no ranking."""
    return told_under(connection, ids) | asked_under(connection, ids)


def told_under(connection: Connection, ids: set[str]) -> dict[str, Asked]:
    """Whose feedback these ids have."""
    return _held_in(connection, feedback, ids)


def _held_in(connection: Connection, table: Table, ids: set[str]) -> dict[str, Asked]:
    key = [table.c[name] for name in ("request_id", "domain", "user_id")]
    found: dict[str, Asked] = {}
    for some in portions(ids):
        named = table.c.request_id.in_(some) & table.c.domain.is_not(None) & table.c.user_id.is_not(None)
        first = func.min(table.c.at, type_=table.c.at.type).label("at")
        for row in connection.execute(select(*key, first).where(named).group_by(*key)):
            found[row.request_id] = Asked(row.domain, row.user_id, row.at)
    return found


def portions(ids: set[str]) -> Iterable[list[str]]:
    """The ids in their order, few enough at a time for one statement."""
    ordered = sorted(ids)
    return (ordered[start : start + _IDS_PER_LOOKUP] for start in range(0, len(ordered), _IDS_PER_LOOKUP))

"""Rows of the registry's tables into frozen values, and the lookups that every verb shares."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from sqlalchemy import Connection, Row, Table, insert, select

from domains.errors import UnknownDomain, UnknownRun, UnknownVersion
from domains.lifecycle import State
from domains.registry.database import now
from domains.registry.records import Domain, Live, Promotion, Run, Version
from domains.registry.tables import audit, domains, live, versions
from domains.spec import DomainSpec

BACKBONE_SLOT = ""


def domain_row(connection: Connection, name: str) -> Row[Any]:
    row = connection.execute(select(domains).where(domains.c.name == name)).one_or_none()
    if row is not None:
        return row
    close = get_close_matches(str(name), connection.execute(select(domains.c.name)).scalars().all(), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UnknownDomain(f"no domain is registered as {name!r}{hint}", name=name)


_UNKNOWN = {"versions": UnknownVersion, "runs": UnknownRun}


def row_of(connection: Connection, table: Table, id: Any) -> Row[Any]:
    row = connection.execute(select(table).where(table.c.id == id)).one_or_none()
    if row is None:
        raise _UNKNOWN[table.name](f"no {table.name.removesuffix('s')} has the id {id!r}", id=id)
    return row


def as_domain(row: Row[Any]) -> Domain:
    spec = DomainSpec.model_validate(row.spec)
    return Domain(
        name=row.name,
        number=row.number,
        role=spec.role,
        state=State(row.state),
        spec=spec,
        owner=spec.owner,
        created_at=row.created_at,
        counts=row.counts,
    )


def version_of(connection: Connection, id: str) -> Version:
    return Version(**row_of(connection, versions, id)._mapping)


def as_run(row: Row[Any]) -> Run:
    return Run(**row._mapping)


def pointer_row(connection: Connection, domain: str | None) -> Row[Any] | None:
    slot = BACKBONE_SLOT if domain is None else domain
    return connection.execute(select(live).where(live.c.slot == slot)).one_or_none()


def as_live(row: Row[Any]) -> Live:
    return Live(domain=row.slot or None, version_id=row.version_id, generation=row.generation, since=row.since)


def as_promotion(row: Row[Any]) -> Promotion:
    return Promotion(**{key: value for key, value in row._mapping.items() if key != "rests_on"})


def note(connection: Connection, who: str, what: str, domain: str | None, why: str = "", **details: Any) -> None:
    entry = {"at": now(), "who": who, "what": what, "domain": domain, "why": why, "details": details}
    connection.execute(insert(audit).values(entry))


def added_counts(counts: Mapping[str, Any], report: Mapping[str, Any]) -> dict[str, Any]:
    """The counts of a domain after one more ingest; see ``Domain.counts``."""
    total = {**counts, "ingests": counts.get("ingests", 0) + 1}
    for key, value in report.items():
        if key.startswith("rows") and isinstance(value, int):
            total[key] = total.get(key, 0) + value
        elif key in ("users", "items", "last_us") and value is not None:
            total[key] = max(total.get(key, value), value)
        elif key == "first_us" and value is not None:
            total[key] = min(total.get(key, value), value)
        elif key == "reasons" and isinstance(value, Mapping):
            before = total.get(key, {})
            total[key] = {**before, **{reason: before.get(reason, 0) + n for reason, n in value.items()}}
    return total

"""What the registry hands out: frozen values, detached from the database, with times in UTC; read from rows here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from difflib import get_close_matches
from typing import Any, Literal

from sqlalchemy import Connection, Row, Select, Table, insert, select

from domains.errors import UnknownDomain, UnknownRun, UnknownVersion
from domains.lifecycle import FallbackLevel, State
from domains.registry.database import now
from domains.registry.tables import audit, domains, live, versions
from domains.spec import DomainSpec

BACKBONE_SLOT = ""
"""The slot of the shared model's live pointer; a domain's slot is its name."""

VersionKind = Literal["backbone", "adapter"]
PromotionKind = Literal["promote", "force", "roll_back", "withdraw"]
"""``force``: a person set live what no gate had let pass, and gave the reason."""
RunState = Literal["queued", "running", "succeeded", "failed", "cancelled"]
FINISHED: tuple[RunState, ...] = ("succeeded", "failed", "cancelled")


@dataclass(frozen=True, kw_only=True)
class Domain:
    """A registered domain."""

    name: str
    number: int
    """Small and stable, from 1: the domain's code in histories and tables."""
    role: Literal["source", "target"]
    state: State
    spec: DomainSpec
    owner: str
    created_at: datetime
    counts: dict[str, Any]
    """Over all ingests: ``ingests``, the sums of ``rows_...`` and ``reasons``, the largest ``users`` and ``items``,
    the earliest ``first_us`` and the latest ``last_us``."""
    challenger: str | None = None
    """The version that passed its gate and waits for a person to promote it."""


@dataclass(frozen=True, kw_only=True)
class Version:
    """An immutable trained artifact: a backbone, or one domain's adapter for one backbone."""

    id: str
    """Content hash."""
    kind: VersionKind
    domain: str | None = None
    backbone_id: str | None = None
    level: FallbackLevel | None = None
    artifact: str
    """Where the weights lie, such as a tag of the model store."""
    metrics: dict[str, Any] = field(default_factory=dict)
    report: dict[str, Any] = field(default_factory=dict)
    certificate: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    created_at: datetime = field(default_factory=now)
    created_by: str = ""
    collected_at: datetime | None = None
    """Since when its files may be deleted, as nothing needs them: it cannot go live before it is published again."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One execution of a flow, however often it was resumed."""

    id: str
    kind: str
    domain: str | None
    state: RunState
    progress: float
    """0 to 1."""
    step: str
    detail: dict[str, Any]
    params: dict[str, Any]
    result: dict[str, Any]
    error: str | None
    started_at: datetime
    finished_at: datetime | None
    flow_run_id: str | None
    started_by: str


@dataclass(frozen=True, kw_only=True)
class Live:
    """The pointer to what answers in a domain; ``domain`` None: the shared model."""

    domain: str | None
    version_id: str
    generation: int
    """The registry's generation when the pointer was moved here."""
    since: datetime
    level: FallbackLevel | None = None
    """Of the version; None of the shared model."""


@dataclass(frozen=True, kw_only=True)
class Promotion:
    """One move of a live pointer: forwards, by force, back, or away (``to_version`` None: nothing is live)."""

    id: int
    domain: str | None
    from_version: str | None
    to_version: str | None
    who: str
    why: str
    at: datetime
    kind: PromotionKind


def domain_row(connection: Connection, name: str) -> Row[Any]:
    """Raises UnknownDomain, with the nearest name."""
    row = connection.execute(select(domains).where(domains.c.name == name)).one_or_none()
    if row is not None:
        return row
    close = get_close_matches(str(name), connection.execute(select(domains.c.name)).scalars().all(), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise UnknownDomain(f"no domain is registered as {name!r}{hint}", name=name)


_UNKNOWN = {"versions": UnknownVersion, "runs": UnknownRun}


def row_of(connection: Connection, table: Table, id: Any) -> Row[Any]:
    """The row of a version, run or promotion; raises UnknownVersion or UnknownRun."""
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
        challenger=row.challenger,
    )


def as_version(row: Row[Any]) -> Version:
    return Version(**row._asdict())


def version_of(connection: Connection, id: str) -> Version:
    """Raises UnknownVersion."""
    return as_version(row_of(connection, versions, id))


def as_run(row: Row[Any]) -> Run:
    return Run(**row._asdict())


def pointer_row(connection: Connection, domain: str | None) -> Row[Any] | None:
    """The live pointer of a domain, or with None of the shared model."""
    slot = BACKBONE_SLOT if domain is None else domain
    return connection.execute(select(live).where(live.c.slot == slot)).one_or_none()


def pointers() -> Select[Any]:
    """Every live pointer with the level of its version: the reports of the versions are long, and not read."""
    named = (live.c.slot, live.c.version_id, live.c.generation, live.c.since, versions.c.level)
    return select(*named).join(versions, versions.c.id == live.c.version_id)


def level_of(connection: Connection, domain: str) -> FallbackLevel | None:
    """The level of the version that is live in a domain; None where nothing is."""
    row = connection.execute(pointers().where(live.c.slot == domain)).one_or_none()
    return None if row is None else as_live(row).level or "adapter"


def as_live(row: Row[Any]) -> Live:
    """Of a row of ``pointers``."""
    return Live(
        domain=row.slot or None,
        version_id=row.version_id,
        generation=row.generation,
        since=row.since,
        level=row.level,
    )


def as_promotion(row: Row[Any]) -> Promotion:
    found = {key: value for key, value in row._asdict().items() if key != "rests_on"}
    return Promotion(**found | ({"to_version": None} if row.kind == "withdraw" else {}))


def note(connection: Connection, who: str, what: str, domain: str | None, why: str = "", **details: Any) -> None:
    """Write an entry of the audit log in this transaction."""
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

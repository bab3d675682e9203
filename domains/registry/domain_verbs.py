"""Verbs on domains: register, change the spec, move through the lifecycle, count what was ingested."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, insert, select, update

from domains.errors import DomainAlreadyRegistered, IllegalTransition, InvalidSpec, Rejected
from domains.lifecycle import State, check_move, state_under
from domains.registry.database import Verbs, advance, now
from domains.registry.records import Domain, added_counts, as_domain, domain_row, level_of, note, version_of
from domains.registry.tables import domains, ingests
from domains.spec import DomainSpec


class DomainVerbs(Verbs):
    """Registered domains, their specs, their states and what was ingested for them."""

    def register_domain(self, spec: DomainSpec, *, by: str) -> Domain:
        """Register a domain under its spec's name; the same spec again gives the domain as it is.

        Raises:
            DomainAlreadyRegistered: another spec holds the name, or the domain is retired.
            InvalidSpec: one of its sources is registered as a target.
        """
        with self._database.write() as connection:
            held = connection.execute(select(domains).where(domains.c.name == spec.name)).one_or_none()
            if held is not None:
                domain = as_domain(held)
                if domain.state is State.RETIRED:
                    raise DomainAlreadyRegistered(
                        f"{spec.name!r} is retired, for good; choose another name", name=spec.name, owner=domain.owner
                    )
                if domain.spec == spec:
                    return domain
                raise DomainAlreadyRegistered(
                    f"{spec.name!r} is already registered, by {domain.owner}; choose another name or update its spec",
                    name=spec.name,
                    owner=domain.owner,
                )
            _check_sources(connection, spec)
            row = {
                "number": advance(connection, "domain_number"),
                "name": spec.name,
                "role": spec.role,
                "state": State.REGISTERED,
                "spec": spec.model_dump(mode="json"),
                "counts": {},
                "created_at": now(),
                "created_by": by,
            }
            connection.execute(insert(domains).values(row))
            note(connection, by, "register_domain", spec.name)
            advance(connection, "generation")
            return as_domain(domain_row(connection, spec.name))

    def update_spec(self, spec: DomainSpec, *, by: str) -> Domain:
        """Replace the spec of a registered domain; its role and its task never change.

        Raises:
            UnknownDomain: no domain has the spec's name.
            InvalidSpec: the role or the task differs, or a source is registered as a target.
            IllegalTransition: the domain is retired.
        """
        with self._database.write() as connection:
            held = as_domain(domain_row(connection, spec.name))
            if held.spec == spec:
                return held
            if held.state is State.RETIRED:
                raise IllegalTransition(f"{spec.name!r} is retired; its spec can no longer change", name=spec.name)
            for field in ("role", "task"):
                before, after = getattr(held.spec, field), getattr(spec, field)
                if before != after:
                    raise InvalidSpec(
                        f"{field}: is {before} for the life of {spec.name!r}; register {after} under another name",
                        field=field,
                    )
            _check_sources(connection, spec)
            written = spec.model_dump(mode="json")
            connection.execute(update(domains).where(domains.c.name == spec.name).values(spec=written))
            note(connection, by, "update_spec", spec.name, before=held.spec.model_dump(mode="json"), after=written)
            advance(connection, "generation")
            return as_domain(domain_row(connection, spec.name))

    def domain(self, name: str) -> Domain:
        """Raises UnknownDomain, with the nearest name."""
        with self._database.read() as connection:
            return as_domain(domain_row(connection, name))

    def domains(self) -> list[Domain]:
        """All domains, retired ones too, by number."""
        with self._database.read() as connection:
            return [as_domain(row) for row in connection.execute(select(domains).order_by(domains.c.number))]

    def move(self, name: str, to: State, *, by: str, why: str = "") -> Domain:
        """Move a domain through its lifecycle; moving to the state that it is in does nothing.

        Raises:
            UnknownDomain: no such domain.
            IllegalTransition: the lifecycle has no such move, or what is live in the domain says otherwise: live is one
                with a trained version, data_ready one without.
        """
        to = State(to)
        with self._database.write() as connection:
            held = as_domain(domain_row(connection, name))
            if held.state is to:
                return held
            level = level_of(connection, name)
            if to is State.LIVE and level != "adapter":
                raise IllegalTransition(
                    f"{name!r} has no trained version live; promote one, which makes it live",
                    current=held.state,
                    wanted=to,
                )
            if to is State.DATA_READY and level == "adapter":
                raise IllegalTransition(
                    f"a trained version is live in {name!r}, so it is live or paused", current=held.state, wanted=to
                )
            change_state(connection, held, to, by=by, why=why)
            if to is State.RETIRED:
                set_challenger(connection, held, None, by=by, why=why)
            advance(connection, "generation")
            return as_domain(domain_row(connection, name))

    def resume(self, name: str, *, by: str, why: str = "") -> Domain:
        """End a domain's pause: what is live answers again. A domain that is not paused stays as it is.

        Raises:
            UnknownDomain: no such domain.
            IllegalTransition: it is retired, or has no data yet.
        """
        with self._database.write() as connection:
            held = as_domain(domain_row(connection, name))
            if held.state is State.PAUSED:
                change_state(connection, held, state_under(level_of(connection, name)), by=by, why=why)
                advance(connection, "generation")
            else:
                check_move(held.state, State.PAUSED)
            return as_domain(domain_row(connection, name))

    def offer(self, name: str, version_id: str | None, *, by: str, why: str = "") -> Domain:
        """Name the version that passed its gate and waits to be promoted, in place of any before; None: none does.

        Raises:
            UnknownDomain, UnknownVersion: no such domain or version.
            Rejected: the version is another domain's, or old and its files were deleted.
            IllegalTransition: the domain is retired.
        """
        with self._database.write() as connection:
            held = as_domain(domain_row(connection, name))
            if version_id is not None and held.state is State.RETIRED:
                raise IllegalTransition(f"{name!r} is retired; nothing goes live there", domain=name)
            if version_id is not None and version_of(connection, version_id).domain != name:
                raise Rejected(f"version {version_id!r} is not one of domain {name!r}", domain=name)
            if version_id is not None and version_of(connection, version_id).collected_at is not None:
                raise Rejected(f"version {version_id!r} is old, and its files were deleted", domain=name)
            if set_challenger(connection, held, version_id, by=by, why=why):
                advance(connection, "generation")
            return as_domain(domain_row(connection, name))

    def record_ingest(self, name: str, ingest_id: str, report: dict[str, Any], *, by: str = "ingest") -> None:
        """Add an ingest's report to the domain's counts, once; the first rows make the domain ready for training.

        Raises UnknownDomain.
        """
        with self._database.write() as connection:
            held = as_domain(domain_row(connection, name))
            of_this = (ingests.c.domain == name) & (ingests.c.ingest_id == ingest_id)
            if connection.execute(select(ingests.c.at).where(of_this)).one_or_none() is not None:
                return
            connection.execute(insert(ingests).values(domain=name, ingest_id=ingest_id, at=now()))
            counts = added_counts(held.counts, report)
            connection.execute(update(domains).where(domains.c.name == name).values(counts=counts))
            note(connection, by, "record_ingest", name, ingest_id=ingest_id)
            if held.state is State.REGISTERED and counts.get("rows_added", 1) > 0:
                change_state(connection, held, State.DATA_READY, by=by, why="data ingested")
            advance(connection, "generation")


def change_state(connection: Connection, held: Domain, to: State, *, by: str, why: str) -> None:
    """Move a domain in this transaction, if the lifecycle has such a move, and note it in the audit log."""
    check_move(held.state, to)
    connection.execute(update(domains).where(domains.c.name == held.name).values(state=to.value))
    note(connection, by, "move", held.name, why=why, before=held.state.value, after=to.value)


def set_challenger(connection: Connection, held: Domain, version_id: str | None, *, by: str, why: str) -> bool:
    """Note in this transaction which version waits to be promoted; says whether that is new."""
    if held.challenger == version_id:
        return False
    connection.execute(update(domains).where(domains.c.name == held.name).values(challenger=version_id))
    note(connection, by, "offer", held.name, why=why, before=held.challenger, after=version_id)
    return True


def _check_sources(connection: Connection, spec: DomainSpec) -> None:
    """A source that is not registered yet may come later; one that is a target never becomes a source."""
    wrong = select(domains.c.name).where(domains.c.name.in_(spec.sources), domains.c.role != "source")
    for name in connection.execute(wrong).scalars():
        raise InvalidSpec(f"sources: {name!r} is registered as a target, so it cannot be a source", field="sources")

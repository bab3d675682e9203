"""Verbs on versions: record an artifact, set one live by compare-and-set, roll back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from domains.errors import Conflict, IllegalTransition, NoLiveVersion, PromotionRefused, Rejected, StalePromotion
from domains.lifecycle import State, check_move, state_under
from domains.registry.database import Verbs, advance, now
from domains.registry.domain_verbs import change_state, set_challenger
from domains.registry.records import (
    BACKBONE_SLOT,
    Domain,
    Live,
    Promotion,
    PromotionKind,
    Version,
    VersionKind,
    as_domain,
    as_live,
    as_promotion,
    as_version,
    domain_row,
    note,
    pointer_row,
    pointers,
    row_of,
    version_of,
)
from domains.registry.tables import live, promotions, versions


class VersionVerbs(Verbs):
    """Trained artifacts, and which of them answers in each domain."""

    def add_version(self, version: Version) -> Version:
        """Record a trained artifact; the same id again gives what is recorded, with its files no longer to be deleted.

        Raises:
            UnknownDomain, UnknownVersion: its domain or its backbone is not recorded.
            Conflict: the id is recorded as another kind, domain, backbone or level.
            Rejected: an adapter must name its domain and its backbone, and a backbone neither.
        """
        names = {version.domain is not None, version.backbone_id is not None}
        if names != {version.kind == "adapter"}:
            raise Rejected("an adapter names its domain and its backbone; a backbone names neither", id=version.id)
        with self._database.write() as connection:
            row = connection.execute(select(versions).where(versions.c.id == version.id)).one_or_none()
            if row is None:
                if version.domain is not None:
                    domain_row(connection, version.domain)
                if version.backbone_id is not None and version_of(connection, version.backbone_id).kind != "backbone":
                    raise Rejected(f"{version.backbone_id!r} is not a backbone", id=version.id)
                connection.execute(insert(versions).values(asdict(version)))
                note(connection, version.created_by, "add_version", version.domain, id=version.id, kind=version.kind)
            elif row.collected_at is not None:
                found = {"artifact": version.artifact, "collected_at": None, "created_at": version.created_at}
                connection.execute(update(versions).where(versions.c.id == version.id).values(found))
                note(connection, version.created_by, "publish_again", version.domain, id=version.id)
            held = version_of(connection, version.id)
            for field in ("kind", "domain", "backbone_id", "level"):
                if getattr(held, field) != getattr(version, field):
                    raise Conflict(f"version {version.id!r} is recorded with another {field}", id=version.id)
            return held

    def reevaluate(
        self,
        id: str,
        *,
        metrics: dict[str, Any],
        report: dict[str, Any],
        certificate: dict[str, Any],
        config: dict[str, Any],
        by: str,
        noted: Mapping[str, Any],
    ) -> Version:
        """Replace the report and the settings of a version whose weights came out of another launch unchanged.

        Args:
            noted: what the audit log says of it beside the version's id.

        Raises:
            UnknownVersion: no such version.
        """
        with self._database.write() as connection:
            held = version_of(connection, id)
            evaluated = {"metrics": metrics, "report": report, "certificate": certificate, "config": config}
            connection.execute(update(versions).where(versions.c.id == id).values(evaluated))
            note(connection, by, "reevaluate", held.domain, id=id, **noted)
            return version_of(connection, id)

    def version(self, id: str) -> Version:
        """Raises UnknownVersion."""
        with self._database.read() as connection:
            return version_of(connection, id)

    def versions(self, domain: str | None = None, kind: VersionKind | None = None) -> list[Version]:
        """All versions, or those of one domain, or of one kind."""
        chosen = select(versions).order_by(versions.c.created_at.desc(), versions.c.id)
        if domain is not None:
            chosen = chosen.where(versions.c.domain == domain)
        if kind is not None:
            chosen = chosen.where(versions.c.kind == kind)
        with self._database.read() as connection:
            return [as_version(row) for row in connection.execute(chosen)]

    def live(self, domain: str | None) -> Live | None:
        """What answers in a domain, or with None the shared model; None when nothing does."""
        slot = BACKBONE_SLOT if domain is None else domain
        with self._database.read() as connection:
            row = connection.execute(pointers().where(live.c.slot == slot)).one_or_none()
            return None if row is None else as_live(row)

    def lives(self) -> list[Live]:
        """Every pointer, those of paused and retired domains too: their state says that they do not answer."""
        with self._database.read() as connection:
            return [as_live(row) for row in connection.execute(pointers().order_by(live.c.slot))]

    def promote(
        self, domain: str | None, version_id: str, *, expect: str | None, who: str, why: str, force: bool = False
    ) -> Promotion:
        """Set a version live if ``expect`` (None: nothing) is still what is live.

        Where the domain is not paused, its state says then whether a trained version answers: live, or data_ready under
        a zero-shot one. Whether the version passed a gate is the caller's to check; ``force`` records for good that it
        had not, also of a version that is live already.

        Promoting what is already live gives the promotion that made it so, whatever is expected, so that a call whose
        answer was lost can be repeated.

        Raises:
            StalePromotion: another version went live meanwhile; evaluate again.
            PromotionRefused: the version belongs to another domain, is not of the right kind, or is old and its files
                were deleted.
            UnknownDomain, UnknownVersion: not recorded.
            IllegalTransition: the domain has no data yet, or is retired.
        """
        with self._database.write() as connection:
            held = None if domain is None else as_domain(domain_row(connection, domain))
            version = version_of(connection, version_id)
            if version.domain != domain:
                owner = "the shared model" if version.domain is None else f"domain {version.domain!r}"
                raise PromotionRefused(f"version {version_id!r} is one of {owner}", domain=domain, version=version_id)
            before = pointer_row(connection, domain)
            current = None if before is None else before.version_id
            if before is not None and current == version_id:
                # Its state may say otherwise since.
                if _enter_live(connection, held, version, who=who, why=why):
                    advance(connection, "generation")
                if force and not _is_forced(connection, version_id):
                    return _mark_forced(connection, domain, version_id, who=who, why=why)
                return as_promotion(row_of(connection, promotions, before.moved_by))
            if current != expect:
                raise StalePromotion(
                    f"{current or 'nothing'} is live in {domain or 'the shared model'}, not {expect or 'nothing'};"
                    " evaluate again",
                    domain=domain,
                    live=current,
                    expected=expect,
                )
            _enter_live(connection, held, version, who=who, why=why)
            rests_on = None if before is None else before.rests_on
            kind: PromotionKind = "force" if force else "promote"
            return _set_live(
                connection, domain, before=current, after=version_id, who=who, why=why, kind=kind, below=rests_on
            )

    def withdraw(self, domain: str, *, who: str, why: str, expect: str | None = None) -> Promotion | None:
        """Take down what is live in a domain, so that popularity answers; None where nothing is.

        A domain in the state live becomes data_ready; a paused one stays so. With ``expect``, only if that version is
        still live. No roll back returns to what was withdrawn; a person may promote it again.

        Raises:
            StalePromotion: ``expect`` is no longer live.
            UnknownDomain: no such domain.
        """
        with self._database.write() as connection:
            held = as_domain(domain_row(connection, domain))
            pointer = pointer_row(connection, domain)
            if pointer is None:
                return None
            if expect is not None and pointer.version_id != expect:
                raise StalePromotion(
                    f"{pointer.version_id} is live in {domain}, not {expect}", domain=domain, live=pointer.version_id
                )
            down = pointer.version_id
            row = {"domain": domain, "from_version": down, "to_version": down, "who": who, "why": why, "at": now()}
            added = insert(promotions).values(**row, kind="withdraw", rests_on=None).returning(promotions.c.id)
            promotion_id = connection.execute(added).scalar_one()
            connection.execute(delete(live).where(live.c.slot == domain))
            if held.state is State.LIVE:
                change_state(connection, held, State.DATA_READY, by=who, why=why)
            note(connection, who, "withdraw", domain, why=why, before=down, after=None)
            advance(connection, "generation")
            return as_promotion(row_of(connection, promotions, promotion_id))

    def roll_back(self, domain: str | None, *, who: str, why: str, expect: str | None = None) -> Promotion:
        """Return to the version that was live before, in one step; again: one further back.

        A paused domain stays so. With ``expect``, only if that version is still live, so that two people who press the
        button at once go one back and not two.

        Raises:
            NoLiveVersion: nothing is live, or nothing was before it.
            PromotionRefused: the files of what was before it were deleted.
            StalePromotion: ``expect`` is no longer live.
            UnknownDomain: no such domain.
            IllegalTransition: the domain is retired.
        """
        with self._database.write() as connection:
            held = None if domain is None else as_domain(domain_row(connection, domain))
            if held is not None and held.state is State.RETIRED:
                raise IllegalTransition(f"{domain!r} is retired; nothing answers there", domain=domain)
            pointer = pointer_row(connection, domain)
            where = domain or "the shared model"
            if pointer is None:
                raise NoLiveVersion(f"nothing is live in {where}", domain=domain)
            if expect is not None and pointer.version_id != expect:
                raise StalePromotion(
                    f"{pointer.version_id} is live in {where}, not {expect}", domain=domain, live=pointer.version_id
                )
            below = row_of(connection, promotions, pointer.rests_on).rests_on
            if below is None:
                raise NoLiveVersion(
                    f"{where} has no earlier version to go back to (live: {pointer.version_id[:12]})", domain=domain
                )
            earlier = row_of(connection, promotions, below).to_version
            if held is not None:
                _follow_pointer(connection, held, version_of(connection, earlier), who=who, why=why)
            return _set_live(
                connection,
                domain,
                before=pointer.version_id,
                after=earlier,
                who=who,
                why=why,
                kind="roll_back",
                below=below,
            )

    def earlier(self, domain: str | None) -> str | None:
        """The version that a roll back would return to; None where there is none."""
        with self._database.read() as connection:
            pointer = pointer_row(connection, domain)
            below = None if pointer is None else row_of(connection, promotions, pointer.rests_on).rests_on
            return None if below is None else row_of(connection, promotions, below).to_version

    def promotions(self, domain: str | None = None) -> list[Promotion]:
        """Every move of a live pointer, of one domain or of all."""
        chosen = select(promotions).order_by(promotions.c.id.desc())
        if domain is not None:
            chosen = chosen.where(promotions.c.domain == domain)
        with self._database.read() as connection:
            return [as_promotion(row) for row in connection.execute(chosen)]

    def forced(self, domain: str | None = None) -> dict[str, Promotion]:
        """The versions of a domain, or of all, that a person once set live against the gate, each with the first such
        move."""
        chosen = select(promotions).where(promotions.c.kind == "force").order_by(promotions.c.id.desc())
        if domain is not None:
            chosen = chosen.where(promotions.c.domain == domain)
        with self._database.read() as connection:
            return {row.to_version: as_promotion(row) for row in connection.execute(chosen)}


def _enter_live(connection: Connection, held: Domain | None, version: Version, *, who: str, why: str) -> bool:
    """Let a domain follow the version that is promoted in it, which then waits no longer; says whether it moved."""
    if held is None:
        return False
    check_move(held.state, State.LIVE)
    if held.challenger is not None and version.level != "zero_shot":
        set_challenger(connection, held, None, by=who, why=why)
    return _follow_pointer(connection, held, version, who=who, why=why)


def _follow_pointer(connection: Connection, held: Domain, version: Version, *, who: str, why: str) -> bool:
    """Put a domain into the state that it has while this version is live; says whether it moved.

    A pause ends when a person says so, never because a better version came.
    """
    follows = state_under(version.level or "adapter")
    if held.state in (State.PAUSED, follows):
        return False
    change_state(connection, held, follows, by=who, why=why)
    return True


def _is_forced(connection: Connection, version_id: str) -> bool:
    moved = select(promotions.c.id).where(promotions.c.kind == "force", promotions.c.to_version == version_id)
    return connection.execute(moved.limit(1)).one_or_none() is not None


def _mark_forced(connection: Connection, domain: str | None, version_id: str, *, who: str, why: str) -> Promotion:
    """Note of the version that is live that a person answers for it; the pointer and what it rests on stay."""
    row = {"domain": domain, "from_version": version_id, "to_version": version_id, "who": who, "why": why, "at": now()}
    added = insert(promotions).values(**row, kind="force", rests_on=None).returning(promotions.c.id)
    promotion_id = connection.execute(added).scalar_one()
    slot = BACKBONE_SLOT if domain is None else domain
    connection.execute(update(live).where(live.c.slot == slot).values(moved_by=promotion_id))
    note(connection, who, "force", domain, why=why, before=version_id, after=version_id)
    advance(connection, "generation")
    return as_promotion(row_of(connection, promotions, promotion_id))


def _set_live(
    connection: Connection,
    domain: str | None,
    *,
    before: str | None,
    after: str,
    who: str,
    why: str,
    kind: PromotionKind,
    below: int | None,
) -> Promotion:
    """Move a pointer. ``below``: for a promotion what it rests on; for a roll back the promotion to rest on again."""
    if version_of(connection, after).collected_at is not None:
        raise PromotionRefused(f"version {after[:12]} is old, and its files were deleted; launch again", domain=domain)
    at, slot = now(), BACKBONE_SLOT if domain is None else domain
    row: dict[str, Any] = {
        "domain": domain,
        "from_version": before,
        "to_version": after,
        "who": who,
        "why": why,
        "at": at,
    }
    row |= {"kind": kind, "rests_on": below}
    promotion_id = connection.execute(insert(promotions).values(row).returning(promotions.c.id)).scalar_one()
    pointer = {
        "version_id": after,
        "generation": advance(connection, "generation"),
        "since": at,
        "moved_by": promotion_id,
        "rests_on": below if kind == "roll_back" else promotion_id,
    }
    if before is None:
        connection.execute(insert(live).values(slot=slot, **pointer))
    else:
        connection.execute(update(live).where(live.c.slot == slot).values(pointer))
    note(connection, who, kind, domain, why=why, before=before, after=after)
    return as_promotion(row_of(connection, promotions, promotion_id))
